"""Launchpad programs: they wire the agents' parts, and compute nothing."""

import agents  # noqa: F401  Before anything else loads TensorFlow.
