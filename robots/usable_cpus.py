"""How many CPUs this process may use: what `workers=0` and `threads=0` mean."""

import os


def usable_cpus() -> int:
    """Those it may run on, where the system says so; else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
