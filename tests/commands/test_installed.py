"""The wheel, installed where nothing else of ours is, and its one command."""

import importlib.metadata
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from launch import main
from tests import fresh
from tests.commands import runs

WHEEL_OF = ('agents', 'programs', 'launch', 'pyproject.toml', 'README.md',
            'LICENSE')


def test_commands_are_the_modules_that_say_so():
  told = main.commands()
  assert told['train'] == 'Trains the agent'
  assert {'evaluate', 'plot', 'train'} <= set(told)
  assert not {'main', 'flags', 'settings', 'files'} & set(told)


def test_help_lists_the_commands_without_importing_any():
  code = ('import sys; from launch import main; main.main([]); '
          'sys.exit(bool({"tensorflow", "matplotlib", "launch.train"} & '
          'set(sys.modules)))')
  listed = subprocess.run([sys.executable, '-c', code], cwd=runs.ROOT,
                          capture_output=True, text=True)
  assert listed.returncode == 0, listed.stderr
  for name, does in main.commands().items():
    assert f'  {name} ' in listed.stdout and does in listed.stdout


@pytest.mark.parametrize('name', ['main', *main.commands()])
def test_help_does_not_wait_for_tensorflow_and_ends_with_its_reader(name):
  code = ('import atexit, runpy, sys\n'
          'atexit.register(lambda: sys.stderr.write('
          '"too slow" if "tensorflow" in sys.modules else ""))\n'
          f'runpy.run_module("launch.{name}", run_name="__main__", alter_sys=True)')
  reader, writer = os.pipe()
  os.close(reader)
  try:
    ended = subprocess.run([sys.executable, '-c', code, '--help'], cwd=runs.ROOT,
                           stdout=writer, stderr=subprocess.PIPE, text=True)
  finally:
    os.close(writer)
  assert (ended.stderr, ended.returncode) == ('', 128 + signal.SIGPIPE)


@pytest.mark.parametrize('argv, told', [
    (['trian'], 'did you mean train?'),
    (['xyz'], 'there are evaluate,'),
    (['--completion'], '--completion takes a shell: bash, zsh, fish.'),
    (['--completion', 'tcsh'], '--completion takes a shell'),
])
def test_what_is_no_command_is_one_line(argv, told, capsys):
  with pytest.raises(SystemExit) as ended:
    main.main(argv)
  assert ended.value.code == 2
  said = capsys.readouterr().err
  assert told in said and said.count('\n') == 1


def test_a_closed_output_hides_no_error():
  ended = subprocess.run(
      ['sh', '-c', f'exec {sys.executable} -m launch.plot nowhere >&-'],
      cwd=runs.ROOT, capture_output=True, text=True)
  assert ended.returncode == 2
  line, = ended.stderr.splitlines()
  assert line.startswith('plot: error: ') and 'nowhere' in line


@pytest.mark.slow
def test_a_command_is_its_module():
  for args in (['--help'], ['--learning_rte', '1'], ['--learning_rate', '2']):
    as_module = runs.run('launch.train', *args)
    as_command = runs.run('launch.main', 'train', *args)
    assert as_command.stdout == as_module.stdout
    assert as_command.stderr == as_module.stderr
    assert as_command.returncode == as_module.returncode


def completion(shell, path):
  """Writes the script that a shell sources."""
  if shutil.which(shell) is None:
    pytest.skip(f'there is no {shell}')
  path.write_text(runs.run('launch.main', '--completion', shell).stdout)
  return path


@pytest.mark.slow
def test_bash_completes_commands_flags_and_choices(tmp_path):
  completion('bash', tmp_path / 'script')

  def completed(*words):
    line = ' '.join(f"'{word}'" for word in words)
    return subprocess.run(
        ['bash', '-c', f'source {tmp_path}/script; COMP_WORDS=({line}); '
         f'COMP_CWORD={len(words) - 1}; _tyro_impala_ppo; '
         'echo "${COMPREPLY[@]}"'],
        check=True, capture_output=True, text=True, cwd=tmp_path
    ).stdout.split()

  assert {*main.commands()} <= {*completed('impala-ppo', '')}
  assert completed('impala-ppo', 'train', '--learning_rate_') == [
      '--learning_rate_decay_timesteps']
  assert completed('impala-ppo', 'train', '--loss', '') == ['ppo', 'vtrace', 'a3c']
  assert completed('impala-ppo', 'plot', '--stat') == ['--statistic']
  assert completed('impala-ppo', 'train', '--preset', 'le') == ['least_time']
  # Where nothing else fits, bash itself has files.
  assert completed('impala-ppo', 'plot', 'scr') == []
  assert '-o default -F' in (tmp_path / 'script').read_text()


@pytest.mark.slow
def test_fish_completes_choices_and_files(tmp_path):
  script = completion('fish', tmp_path / 'script')
  for line, expected in (('train --preset le', 'least_time'),
                         ('plot --stat', '--statistic'), ('plot scr', 'script')):
    told = subprocess.run(
        ['fish', '--no-config', '-c', f'source {script}; complete -C '
         f'"impala-ppo {line}"'], check=True, capture_output=True, text=True,
        cwd=tmp_path).stdout.splitlines()
    assert [candidate.partition('\t')[0] for candidate in told] == [expected]


@pytest.mark.slow
def test_zsh_knows_the_command_once_it_has_sourced_the_script(tmp_path):
  script = completion('zsh', tmp_path / 'script')
  told = subprocess.run(
      ['zsh', '-fc', 'autoload -U compinit; compinit -D; '
       f'source {script}; print $_comps[impala-ppo]'],
      check=True, capture_output=True, text=True)
  assert told.stdout.strip() == '_tyro_impala_ppo' and not told.stderr


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
  """A new environment with the wheel of this checkout, and what it needs."""
  path = tmp_path_factory.mktemp('installed')
  source = path / 'source'
  source.mkdir()  # Without the checkout's build/, which may hold older modules.
  for name in WHEEL_OF:
    origin = runs.ROOT / name
    if origin.is_dir():
      shutil.copytree(origin, source / name, ignore=shutil.ignore_patterns(
          '__pycache__', '*.so'))
    else:
      shutil.copy(origin, source)
  subprocess.run(
      [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-index',
       '--no-build-isolation', '--wheel-dir', path, source], check=True)
  wheel, = path.glob('impala_ppo-*.whl')
  environment = fresh.Environment(path / 'venv')
  environment.pip('install', '--quiet', '--no-deps', '--no-index', str(wheel))
  ours, = importlib.metadata.distributions(
      name='impala-ppo', path=[str(environment.site)])
  environment.link(fresh.needed(*ours.requires))
  return environment


@pytest.mark.slow
def test_the_installed_command_trains_and_plots_from_anywhere(installed, tmp_path):
  assert 'No broken requirements' in installed.pip('check')
  where = installed.run(tmp_path, 'python', '-c',
                        'import launch, programs, agents; print(launch.__file__, '
                        'programs.__file__, agents.__file__)').stdout.split()
  assert all(pathlib.Path(file).is_relative_to(installed.site) for file in where)
  trained = installed.run(
      tmp_path, 'impala-ppo', 'train', '--game', 'CartPole-v1', '--run_dir', 'run',
      '--max_timesteps', '6000', *runs.SMALL)
  assert trained.returncode == 0, trained.stdout + trained.stderr
  rows = runs.rows(tmp_path / 'run')
  assert rows[-1]['timesteps'] >= 6000 and rows[-1]['learner_steps'] > 100
  evaluated = installed.run(tmp_path, 'impala-ppo', 'evaluate', '--pretrained',
                            'pong', '--episodes', '2', '--json')
  assert evaluated.returncode == 0, evaluated.stderr
  result, = json.loads(evaluated.stdout)
  assert result['game'] == 'pong' and len(result['returns']) == 2
  assert min(result['returns']) >= 18
  plotted = installed.run(tmp_path, 'impala-ppo', 'plot', 'run')
  assert plotted.returncode == 0, plotted.stderr
  assert (tmp_path / 'curves.png').stat().st_size > 10_000
