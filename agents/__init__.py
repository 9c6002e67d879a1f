"""The agent and its environments; none of it knows how it is run."""

import os
import sys
import warnings

# TensorFlow 2.8 ships its oneDNN kernels switched off; they make convolutions
# on a CPU three times as fast. TensorFlow reads both variables when it loads.
if 'tensorflow' in sys.modules and 'TF_ENABLE_ONEDNN_OPTS' not in os.environ:
  warnings.warn('TensorFlow was loaded without TF_ENABLE_ONEDNN_OPTS=1, so its '
                'convolutions on CPUs take three times as long; import agents '
                'first.', stacklevel=2)
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
