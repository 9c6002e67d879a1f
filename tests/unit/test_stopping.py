"""Stopping in time: who is waited for, and whose errors count."""

import threading
import time

import pytest

from programs.runtime import stopping


@pytest.fixture(autouse=True)
def short(monkeypatch):
  monkeypatch.setattr(stopping, '_GRACE_SECONDS', 0.3)
  monkeypatch.setattr(stopping, '_AT_ONCE_SECONDS', 0.1)


@pytest.fixture
def should_stop():
  return threading.Event()


@pytest.fixture
def forever():
  """Waits until the test has ended."""
  event = threading.Event()
  yield event.wait
  event.set()


def test_it_returns_when_the_function_ends(should_stop):
  done = []
  stopping.run_until_stopped(lambda: done.append(1), should_stop)
  assert done == [1] and not should_stop.is_set()


def test_it_raises_what_the_function_raised(should_stop):
  def fail():
    raise KeyError('broken')

  with pytest.raises(KeyError, match='broken'):
    stopping.run_until_stopped(fail, should_stop)


def test_an_error_while_stopping_is_none(should_stop):
  def fail():
    should_stop.wait()
    raise KeyError('the server has gone')

  threading.Timer(0.1, should_stop.set).start()
  stopping.run_until_stopped(fail, should_stop)


def test_an_error_just_before_stopping_is_none(should_stop):
  def fail():
    threading.Timer(0.1, should_stop.set).start()
    raise KeyError('the server has gone')

  stopping.run_until_stopped(fail, should_stop)


def test_a_stuck_function_is_interrupted_and_left_behind(should_stop, forever):
  interrupted = []
  should_stop.set()
  began = time.monotonic()
  stopping.run_until_stopped(
      forever, should_stop, patience_seconds=0.4,
      interrupt=lambda: interrupted.append(time.monotonic() - began))
  waited, = interrupted
  assert waited >= 0.1
  # Patience begins once it is interrupted; the rest is the machine's.
  assert waited + 0.4 <= time.monotonic() - began < 10.


def test_an_interrupt_that_helps_ends_the_wait(should_stop):
  interrupted = threading.Event()
  should_stop.set()
  began = time.monotonic()
  stopping.run_until_stopped(interrupted.wait, should_stop, patience_seconds=60.,
                             interrupt=interrupted.set)
  assert interrupted.is_set() and time.monotonic() - began < 30.


def test_who_returns_at_once_is_not_interrupted(should_stop, monkeypatch):
  monkeypatch.setattr(stopping, '_AT_ONCE_SECONDS', 30.)
  threading.Timer(0.1, should_stop.set).start()
  stopping.run_until_stopped(should_stop.wait, should_stop,
                             interrupt=lambda: pytest.fail('interrupted'))
