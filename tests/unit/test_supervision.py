"""Who is restarted, when to give up, and what becomes of what nodes print."""

import json
import os
import signal
import threading
import time

import pytest

from launch.engines import supervision
from launch.views import printing
from programs.runtime import processes
from programs.runtime import records

KILLED = -9


class Clock:
  now = 100.

  def __call__(self):
    return self.now


@pytest.fixture
def clock():
  return Clock()


@pytest.fixture
def policy(clock):
  return supervision.RestartPolicy(clock=clock)


def live(policy, clock, seconds, code, node='actor/0'):
  """A node starts, ends after some time, and gets a verdict."""
  policy.started(node)
  clock.now += seconds
  return policy.reason_to_give_up(node, code)


def test_starts_are_counted_for_each_node(policy):
  assert [policy.started('actor/0') for _ in range(3)] == [0, 1, 2]
  assert policy.started('actor/1') == 0


def test_what_is_killed_now_and_then_is_always_restarted(policy, clock):
  for _ in range(50):
    assert live(policy, clock, 11., KILLED) is None


def test_five_ends_in_a_row_while_starting_are_enough(policy, clock):
  verdicts = [live(policy, clock, 3., KILLED) for _ in range(5)]
  assert verdicts[:4] == [None] * 4 and 'starting' in verdicts[4]


def test_one_long_life_forgives_earlier_ends(policy, clock):
  for _ in range(5):
    for _ in range(4):
      assert live(policy, clock, 3., KILLED) is None
    assert live(policy, clock, 30., KILLED) is None


def test_the_third_failure_within_a_minute_is_the_last(policy, clock):
  assert live(policy, clock, 25., 1) is None
  assert live(policy, clock, 25., 1) is None
  assert '3 times within 60 seconds' in live(policy, clock, 25., 1)


def test_rare_failures_are_forgiven(policy, clock):
  for _ in range(20):
    assert live(policy, clock, 31., 1) is None


def test_nodes_are_judged_by_themselves(policy, clock):
  for node in ('actor/0', 'actor/1', 'actor/2', 'actor/3'):
    assert live(policy, clock, 5., 1, node) is None


def test_without_restarts_the_first_end_is_the_last(clock):
  policy = supervision.RestartPolicy(restarts=False, clock=clock)
  assert live(policy, clock, 500., KILLED) == 'nodes are not restarted'


@pytest.mark.parametrize('number', [signal.SIGABRT, signal.SIGSEGV])
def test_a_crash_is_a_failure(policy, clock, number):
  verdicts = [live(policy, clock, 12., -number) for _ in range(3)]
  assert verdicts[:2] == [None, None] and '3 times within' in verdicts[2]


@pytest.mark.parametrize('code, told', [
    (-9, 'was killed by signal 9 (Killed)'), (3, 'ended with exit code 3'),
    (0, 'ended with exit code 0')])
def test_ends_are_described(code, told):
  assert supervision.describe_exit(code) == told


class Process:
  """One that has printed some lines, and ended."""

  def __init__(self, lines):
    self._lines = lines

  def lines(self):
    yield from self._lines

  def poll(self):
    return supervision.End(0, 'ended')

  def signal(self, number):
    raise ProcessLookupError


class Node(supervision.Node):

  def __init__(self, title, lines=(), process=None):
    super().__init__(title)
    self._next = process or Process(lines)

  def begin(self, variables):
    return self._next


@pytest.mark.parametrize('line', [
    f'{records.STARTING}episode 1', f'{records.ROW}3', records.ROW,
    f'{records.STARTING}{{}}', f'{records.ROW}[1, 2]'])
def test_what_a_game_prints_is_a_line_whatever_it_looks_like(line, tmp_path, capsys):
  node = Node('actor/3', ['actor/3: first', line, 'actor/3: last'])
  node.log = str(tmp_path / 'log')
  node.start(0)
  node.poll()
  assert capsys.readouterr().out == 'actor/3: first\nactor/3: last\n'
  assert (tmp_path / 'log').read_text() == f'actor/3: first\n{line}\nactor/3: last\n'
  assert list(node.last_lines) == ['actor/3: first', line, 'actor/3: last']


def test_what_the_counter_tells_the_launcher_is_in_no_log(tmp_path):
  rows = []

  class Screen(printing.Screen):
    def row(self, row):
      rows.append(row)

  node = Node('counter/0', [records.ROW + json.dumps({'timesteps': 3})])
  node.screen, node.log = Screen(), str(tmp_path / 'log')
  node.start(0)
  node.poll()
  assert rows == [{'timesteps': 3}] and not (tmp_path / 'log').exists()


def test_a_signal_before_its_start_is_none_of_a_nodes():
  node = Node('actor/0')
  node.signal(signal.SIGKILL)
  node.start(0)
  with pytest.raises(ProcessLookupError):
    node.signal(signal.SIGKILL)


def test_lines_that_got_into_each_other_end_no_reader(capsys):
  node = Node('counter/0', [f'{records.ROW}{{"timesteps": E0101', 'counter: after'])
  node.start(0)
  node.poll()
  assert capsys.readouterr().out == 'counter: after\n'


class Living(Process):
  """One that lives until some seconds after SIGTERM, or SIGKILL.

  The supervisor, which is this process, gets signals some seconds after its start.
  """

  def __init__(self, seconds, sent=(), code=0):
    super().__init__([])
    self._seconds = seconds
    self._sent = sent
    self._code = code
    self._ends_at = float('inf')
    self.signals = []

  def lines(self):
    for seconds, number in self._sent:
      threading.Timer(seconds, os.kill, (os.getpid(), number)).start()
    return iter(())

  def poll(self):
    is_over = time.monotonic() >= self._ends_at
    return supervision.End(self._code, 'ended so') if is_over else None

  def signal(self, number):
    self.signals.append(number)
    seconds = 0. if number == signal.SIGKILL else self._seconds
    self._ends_at = min(self._ends_at, time.monotonic() + seconds)


class Ended(Process):
  """One that has failed."""

  def poll(self):
    return supervision.End(1, 'ended with exit code 1')


@pytest.fixture
def handlers():
  """Has the handlers of signals back after the test."""
  numbers = (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
  before = {number: signal.getsignal(number) for number in numbers}
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


@pytest.mark.usefixtures('handlers')
def test_a_terminal_that_hangs_up_twice_at_once_asks_once():
  process = Living(0.5, [(0.3, signal.SIGHUP), (0.3, signal.SIGHUP),
                         (0.3, signal.SIGTERM)])
  assert supervision.Supervisor([Node('learner/0', process=process)]).run() == 0
  assert process.signals == [signal.SIGTERM]


@pytest.mark.usefixtures('handlers')
def test_who_asks_again_does_not_wait_for_what_does_not_end():
  process = Living(3600., [(0.3, signal.SIGINT), (1.8, signal.SIGINT)])
  began = time.monotonic()
  assert supervision.Supervisor([Node('learner/0', process=process)]).run() == 0
  assert process.signals == [signal.SIGTERM, signal.SIGKILL]
  assert 1.5 < time.monotonic() - began < 10.


@pytest.mark.usefixtures('handlers')
@pytest.mark.parametrize('is_back', [False, True])
def test_a_run_ends_once_its_directory_has_gone_for_good(
    tmp_path, is_back, monkeypatch, capsys):
  monkeypatch.setattr(supervision, '_GONE_SECONDS', 0.5)
  run_dir, moved = tmp_path / 'run', tmp_path / 'moved'
  run_dir.mkdir()
  process = Living(0.1, [(2., signal.SIGTERM)] if is_back else [])
  supervisor = supervision.Supervisor(
      [Node('learner/0', process=process)], str(run_dir))
  threading.Timer(0.3, run_dir.rename, (moved,)).start()
  if is_back:
    threading.Timer(0.5, moved.rename, (run_dir,)).start()
  code = supervisor.run()
  assert code == (0 if is_back else processes.ENDS_RUN)
  told = f'{run_dir} was removed or moved' in capsys.readouterr().err
  assert told != is_back


@pytest.mark.usefixtures('handlers')
@pytest.mark.parametrize('is_told, code', [(False, 1), (True, processes.ENDS_RUN)])
def test_who_is_told_to_stop_while_a_run_fails_is_not_retried(is_told, code):
  living = Living(1., [(0.6, signal.SIGTERM)] if is_told else [])
  nodes = [Node('actor/0', process=Ended([])), Node('learner/0', process=living)]
  assert supervision.Supervisor(nodes, restarts=False).run() == code


@pytest.mark.usefixtures('handlers')
@pytest.mark.parametrize('title, code, ends, result', [
    ('learner/0', 0, signal.SIGTERM, 0), ('actor/0', 1, signal.SIGTERM, 0),
    ('learner/0', -signal.SIGTERM, signal.SIGTERM, 0),
    ('learner/0', 1, signal.SIGTERM, processes.ENDS_RUN),
    ('learner/0', KILLED, signal.SIGUSR1, 1)])  # A retry would go on.
def test_a_learner_that_may_not_have_saved_its_last_step_is_told(
    title, code, ends, result, capsys):
  process = Living(0.1, [(0.3, ends)], code)
  assert supervision.Supervisor([Node(title, process=process)]).run() == result
  told = 'node learner/0 ended so, so its last steps may not be' in (
      capsys.readouterr().err)
  assert told == bool(result)
