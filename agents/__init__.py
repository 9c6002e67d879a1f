"""The agent and its environments, independent of how they are run."""

import os
import socket
import sys
import warnings

import psutil

from agents import cuda

# TensorFlow 2.8 ships its oneDNN kernels switched off; they make convolutions
# on a CPU three times as fast. TensorFlow reads both variables when it loads.
if 'tensorflow' in sys.modules and 'TF_ENABLE_ONEDNN_OPTS' not in os.environ:
  warnings.warn('TensorFlow was loaded without TF_ENABLE_ONEDNN_OPTS=1, so its '
                'convolutions on CPUs take three times as long; import agents '
                'first.', stacklevel=2)
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
cuda.prepare()

# gRPC, which Reverb and Courier use, would ask a proxy even for this machine's own
# servers, and wait forever. It reads this when it connects; nodes inherit it.
_own = {'localhost', socket.gethostname(), *(
    address.address.partition('%')[0]
    for addresses in psutil.net_if_addrs().values() for address in addresses
    if address.family in (socket.AF_INET, socket.AF_INET6))}
_others = (os.environ.get('no_grpc_proxy') or os.environ.get('no_proxy') or
           'localhost')
os.environ['no_grpc_proxy'] = ','.join(sorted({*_own, *_others.split(',')}))
