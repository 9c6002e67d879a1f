"""Agents, environments and the loops that join them; none of it knows Launchpad."""

import os

# TensorFlow 2.8 ships its oneDNN kernels switched off; they make convolutions
# on a CPU three times as fast. TensorFlow reads both variables when it loads.
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
