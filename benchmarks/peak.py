"""A process's peak memory, for programs that measure themselves: nothing is imported that they have not."""

from __future__ import annotations

import sys


def peak_bytes() -> int:
    """This process's peak resident memory; 0 where the system does not tell.

    VmHWM where there is a /proc: on Linux getrusage's begins with that of the process this one was started from.
    """
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            return 1024 * int(status.read().partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError, ValueError):
        pass
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
