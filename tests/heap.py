"""What this process has of malloc, which nothing that others do changes.

Its resident memory changes as others begin and cease to share libraries with it.
"""

import ctypes


class _Mallinfo(ctypes.Structure):
  """From <malloc.h>; sums over all heaps."""
  _fields_ = [(name, ctypes.c_uint) for name in (
      'arena', 'ordblks', 'smblks', 'hblks', 'hblkhd', 'usmblks', 'fsmblks',
      'uordblks', 'fordblks', 'keepcost')]


def _mallinfo():
  mallinfo = ctypes.CDLL(None).mallinfo
  mallinfo.restype = _Mallinfo
  return mallinfo()


def used() -> int:
  """Returns the bytes that are in use."""
  info = _mallinfo()
  return info.uordblks + info.hblkhd


def held() -> int:
  """Returns those, and what is kept for later."""
  info = _mallinfo()
  return info.arena + info.hblkhd
