"""CUDA's libraries, and what is said of a GPU that cannot be used."""

import ctypes.util
import importlib.util
import os
import subprocess
import sys

import pytest

from agents import cuda

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DRIVER = """
int cuDriverGetVersion(int *version) { *version = %d; return 0; }
int cuInit(unsigned int flags) { return %d; }
int cuDeviceGetCount(int *count) { *count = %d; return 0; }
int cuDeviceGet(int *device, int number) { return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? 7 : 5;  // The compute capability's first part.
  return 0;
}
int cuDeviceGetName(char *name, int size, int device) { *name = 0; return 0; }
int cuDeviceTotalMem_v2(long *size, int device) { *size = 1L << 30; return 0; }
int cuDeviceGetPCIBusId(char *name, int size, int device) { *name = 0; return 0; }
"""


def compile_library(path, code=''):
  """Makes a shared library, which knows itself by the name of its file."""
  os.makedirs(os.path.dirname(path), exist_ok=True)
  subprocess.run(
      ['gcc', '-shared', '-fPIC', '-x', 'c', '-', '-o', path,
       f'-Wl,-soname,{os.path.basename(path)}'],
      input=code.encode(), check=True)


def run(code, tmp_path, **environ):
  """Runs code in a process of its own, with the driver that was made, if any."""
  path = os.pathsep.join([ROOT, str(tmp_path / 'site')])
  output = subprocess.run(
      [sys.executable, '-c', f'import agents\nfrom agents import cuda\n{code}'],
      env={**os.environ, 'PYTHONPATH': path,
           'LD_LIBRARY_PATH': str(tmp_path / 'driver'), **environ},
      cwd=tmp_path, capture_output=True, text=True, check=True)
  return output.stdout.strip()


def make_driver(tmp_path, version=12020, error=0, num_gpus=0):
  compile_library(str(tmp_path / 'driver' / 'libcuda.so.1'),
                  DRIVER % (version, error, num_gpus))


def make_wheels(tmp_path, without=()):
  """Empty libraries where the wheels have theirs."""
  for folder, names in cuda.LIBRARIES.items():
    for name in set(names) - set(without):
      compile_library(str(tmp_path / 'site' / 'nvidia' / folder / 'lib' / name))


def test_libraries_of_wheels_are_found_by_their_names(tmp_path):
  make_driver(tmp_path)
  make_wheels(tmp_path)
  names = [name for names in cuda.LIBRARIES.values() for name in names]
  # As TensorFlow opens them.
  told = run('import ctypes\n'
             f'for name in {names}: ctypes.CDLL(name)\n'
             'print(cuda.why_unusable())', tmp_path)
  assert told == 'None'


@pytest.mark.slow
def test_nodes_find_the_gpu_which_actors_leave_to_the_learner(tmp_path):
  make_driver(tmp_path, num_gpus=1)
  make_wheels(tmp_path)
  # As Launchpad starts a node: Abseil has TensorFlow look for GPUs first.
  told = run("""from absl import app
import tensorflow as tf
from programs.runtime import processes
def main(argv):
  found = tf.config.get_visible_devices('GPU')
  processes.use_one_core(niceness=0)
  print(len(found), tf.config.list_logical_devices('GPU'))
app.run(main)""", tmp_path)
  assert told == '1 []'


@pytest.mark.skipif(bool(ctypes.util.find_library('cuda')),
                    reason='this machine has a driver')
def test_without_a_driver_nothing_is_loaded(tmp_path):
  make_wheels(tmp_path)
  told = run('print("nvidia" in open("/proc/self/maps").read())', tmp_path)
  assert told == 'False'


@pytest.mark.parametrize('driver, told', [
    ({'version': 11010}, "the driver is CUDA 11.1's, and TensorFlow needs 11.2's"),
    ({'version': 10020}, "the driver is CUDA 10.2's"),
    ({'error': 803}, 'its cuInit fails with error 803'),
    ({'error': 100}, 'None'),  # There is no GPU.
    ({}, 'libcudnn.so.8 cannot be loaded: install CUDA 11 and cuDNN 8'),
])
def test_why_a_gpu_cannot_be_used(tmp_path, driver, told):
  if 'libcudnn' in told and importlib.util.find_spec('nvidia'):
    pytest.skip('cuDNN is installed')
  make_driver(tmp_path, **driver)
  make_wheels(tmp_path, without=['libcudnn.so.8'])
  assert told in run('print(cuda.why_unusable())', tmp_path)


def test_a_card_without_a_driver_is_told(monkeypatch):
  monkeypatch.setattr(cuda, '_DRIVER', 'libno_such_driver.so.1')
  monkeypatch.setattr(cuda, '_has_card', lambda: True)
  assert 'install its driver' in cuda.why_unusable()
  monkeypatch.setattr(cuda, '_has_card', lambda: False)
  assert cuda.why_unusable() is None


def test_memory_grows_and_kernels_are_kept_unless_told_otherwise(tmp_path):
  show = ('import os; print([os.environ[n] for n in ("TF_FORCE_GPU_ALLOW_GROWTH", '
          '"CUDA_MODULE_LOADING", "CUDA_CACHE_MAXSIZE")])')
  unset = {name: os.environ.pop(name, None) for name in (
      'TF_FORCE_GPU_ALLOW_GROWTH', 'CUDA_MODULE_LOADING', 'CUDA_CACHE_MAXSIZE')}
  try:
    assert run(show, tmp_path) == "['true', 'LAZY', '4294967296']"
    assert "'false'" in run(show, tmp_path, TF_FORCE_GPU_ALLOW_GROWTH='false')
  finally:
    os.environ.update({name: value for name, value in unset.items() if value})


@pytest.mark.parametrize('capability, has', [
    ((7, 0), False), ((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_which_gpus_have_to_compile(capability, has):
  assert cuda.has_to_compile(capability) is has


@pytest.mark.slow
def test_the_command_says_why_no_gpu_is_used(tmp_path):
  make_driver(tmp_path, version=11010)
  output = subprocess.run(
      [sys.executable, '-m', 'launch.train', '--game', 'CartPole-v1', '--num_gpus',
       '1', '--run_dir', str(tmp_path / 'run')], cwd=ROOT,
      env={**os.environ, 'LD_LIBRARY_PATH': str(tmp_path / 'driver')},
      capture_output=True, text=True)
  assert output.returncode == 2
  assert "the driver is CUDA 11.1's" in output.stderr.splitlines()[-1]
  assert 'Traceback' not in output.stderr
