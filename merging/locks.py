"""Locks on files and folders between processes; it knows neither what they hold nor why.

Where a machine or a file system has no locks, everybody may go on.
"""

import os
from contextlib import suppress

try:
    import fcntl
except ImportError:  # Windows: files that are read cannot be removed there
    fcntl = None  # type: ignore[assignment]

THERE = fcntl is not None


def lock(handle: int, *, alone: bool, wait: bool = False) -> bool:
    """Lock an open file or folder, with others or `alone`; False where that is not possible.

    Raises BlockingIOError where others do not allow it, unless it is to `wait`.
    """
    if not THERE:
        return False
    how = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    try:
        fcntl.flock(handle, how if wait else how | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def let_go(handle: int) -> None:
    """Unlock and close: closing is not enough where a child process has the file too."""
    if THERE:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)
