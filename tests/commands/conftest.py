"""What tests of commands share."""

import pytest

from tests.commands import runs


@pytest.fixture(autouse=True)
def no_run_outlives_its_test():
  yield
  runs.end_launched()
