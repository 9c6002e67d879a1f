"""Commands: they parse, check and start, and leave the work to `programs`."""

import agents  # noqa: F401  Before anything else loads TensorFlow.
