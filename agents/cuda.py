"""CUDA for TensorFlow: where its libraries are, and why a GPU cannot be used.

`pip install '.[gpu]'` installs CUDA and cuDNN as wheels, where the loader does not
look. A library that is already loaded is found by its name, so those of the wheels
are loaded by path before TensorFlow asks for them.
"""

import ctypes
import glob
import importlib.util
import os
from typing import Optional

# The libraries that TensorFlow 2.8, and then cuDNN, open, by the wheels' folders;
# dependencies come first.
LIBRARIES = {
    'cuda_runtime': ('libcudart.so.11.0',),
    'cublas': ('libcublasLt.so.11', 'libcublas.so.11'),
    'cufft': ('libcufft.so.10',),
    'curand': ('libcurand.so.10',),
    'cusparse': ('libcusparse.so.11',),
    'cusolver': ('libcusolver.so.11',),
    'cuda_nvrtc': ('libnvrtc.so.11.2',),
    'cudnn': ('libcudnn.so.8',),
}
_DRIVER = 'libcuda.so.1'
# The driver of CUDA 11.2 is the first that accepts TensorFlow's compiled code.
_OLDEST_DRIVER = (11, 2)
_NO_DEVICE = 100
_NVIDIA = '0x10de'
# TensorFlow 2.8 has machine code for GPUs of compute capability up to 7.5; for
# newer ones the driver compiles.
_NEWEST_COMPILED = (7, 5)
_CACHE_BYTES = 4 << 30


def prepare() -> None:
  """Sets what CUDA and TensorFlow read when they load, and loads the wheels.

  Call this before importing TensorFlow. The import opens CUDA's runtime, and the
  first request for GPUs the rest; Abseil's `app.run` triggers that before any of
  our code runs. Without a driver, nothing is loaded.
  """
  os.environ.setdefault('TF_FORCE_GPU_ALLOW_GROWTH', 'true')
  # Kernels are compiled for a new GPU once, when first used, and cached.
  os.environ.setdefault('CUDA_MODULE_LOADING', 'LAZY')
  os.environ.setdefault('CUDA_CACHE_MAXSIZE', str(_CACHE_BYTES))
  if _load(_DRIVER) is not None:
    for folder, names in LIBRARIES.items():
      for name in names:
        path = _path(folder, name)
        if path is not None:
          _load(path)


def why_unusable() -> Optional[str]:
  """Returns why a GPU that is present cannot be used; None if there is none.

  Also returns None if nothing is known to be wrong.
  """
  driver = _load(_DRIVER)
  if driver is None:
    return (f'there is an NVIDIA card, but no {_DRIVER}: install its driver'
            if _has_card() else None)
  version = ctypes.c_int()
  driver.cuDriverGetVersion(ctypes.byref(version))
  found = (version.value // 1000, version.value % 1000 // 10)
  if found < _OLDEST_DRIVER:
    return (f"the driver is CUDA {found[0]}.{found[1]}'s, and TensorFlow needs "
            f"{_OLDEST_DRIVER[0]}.{_OLDEST_DRIVER[1]}'s: install one of version "
            '460 or newer')
  error = driver.cuInit(0)
  if error == _NO_DEVICE:
    return None
  if error:
    return f'the driver cannot be used: its cuInit fails with error {error}'
  missing = [name for folder, names in LIBRARIES.items()
             for name in names if _load(_path(folder, name) or name) is None]
  if missing:
    return (f'{", ".join(missing)} cannot be loaded: install CUDA 11 and cuDNN 8, '
            "as pip install '.[gpu]' does")
  return None


def has_to_compile(compute_capability: tuple[int, int]) -> bool:
  """Returns whether TensorFlow's kernels must still be compiled for a GPU."""
  return tuple(compute_capability) > _NEWEST_COMPILED


def _path(folder: str, name: str) -> Optional[str]:
  """Returns the path of a library in the wheels, or None."""
  spec = importlib.util.find_spec('nvidia')
  for directory in (spec and spec.submodule_search_locations) or ():
    path = os.path.join(directory, folder, 'lib', name)
    if os.path.exists(path):
      return path
  return None


def _load(name: str) -> Optional[ctypes.CDLL]:
  try:
    return ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
  except OSError:
    return None


def _has_card() -> bool:
  for path in glob.glob('/sys/bus/pci/devices/*'):
    try:
      with open(f'{path}/vendor') as vendor, open(f'{path}/class') as kind:
        if vendor.read().strip() == _NVIDIA and kind.read().startswith('0x03'):
          return True
    except OSError:
      pass
  return False
