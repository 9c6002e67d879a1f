"""Launchpad programs, which wire the agents' parts."""

import agents  # noqa: F401  Before anything else loads TensorFlow.
