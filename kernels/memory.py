"""Keeping freed memory in the process, for programs that need the same large buffers every step.

glibc gives large freed buffers back to the system, and the next step pays for them again, page by
page. This is a choice of the program, not of a library: nothing here happens unless it is called.
"""

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of malloc.h
_LARGEST = 2**31 - 1


def keep_memory() -> bool:
    """Tells the C library to reuse freed memory from now on instead of returning it.

    Large freed buffers stay with the process: its memory does not shrink below its peak (up to
    2 GiB at the top of the heap). Call it before the first large computation.

    Returns:
        Whether the C library has these settings and took them (glibc does; others do nothing).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, _LARGEST))
    return all(mallopt(name, value) == 1 for name, value in settings)
