"""Reports to a counter that is slow, away, or back."""

import threading

import pytest

from programs.runtime import reports


class Counter:
  """Answers when it may, or fails."""

  def __init__(self):
    self.may_answer = threading.Event()
    self.may_answer.set()
    self.is_away = False
    self.got = []
    self.bad_numbers = 0
    self.state = {'counts': {'actor_steps': 1}}

  def record_acting(self, timesteps, returns, bad_numbers):
    assert self.may_answer.wait(20.)
    if self.is_away:
      raise RuntimeError('socket closed')
    self.got.append((timesteps, list(returns)))
    self.bad_numbers += bad_numbers

  def save(self):
    if self.is_away:
      raise RuntimeError('deadline exceeded')
    return self.state


@pytest.fixture
def counter():
  return Counter()


def test_nobody_waits_for_a_slow_counter(counter):
  reporter = reports.ActingReporter(counter)
  counter.may_answer.clear()
  for _ in range(3):
    reporter.add(10, [1.])
    reporter.send()
  assert counter.got == []
  counter.may_answer.set()
  reporter.close(20.)
  assert counter.got == [(10, [1.]), (20, [1., 1.])]


def test_what_a_counter_misses_it_is_told_again_in_order(counter):
  reporter = reports.ActingReporter(counter)
  counter.is_away = True
  for value in (1., 2., 3.):
    reporter.add(10, [value], 2)
    reporter.send()
    reporter._background.wait(20.)
  counter.is_away = False
  reporter.add(5, [4.])
  reporter.close(20.)
  assert counter.got[0] == (35, [1., 2., 3., 4.])
  assert sum(timesteps for timesteps, _ in counter.got) == 35
  assert counter.bad_numbers == 6


def test_a_checkpoint_does_without_the_counter(counter, capsys):
  state = reports.CounterState(counter)
  assert state.save() == counter.state
  counter.is_away = True
  assert state.save() == {'counts': {'actor_steps': 1}}
  assert 'deadline exceeded' in capsys.readouterr().out
