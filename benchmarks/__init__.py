"""Benchmarks: commands that measure the real program."""

import agents  # noqa: F401  Before anything else loads TensorFlow.
