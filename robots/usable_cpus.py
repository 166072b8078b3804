"""How many CPUs this process may use, what `workers=0` and `threads=0` mean; and who shares the machine with it."""

import os


def usable_cpus() -> int:
    """Those it may run on, where the system says so; else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes_here() -> int:
    """Of this program on this machine, itself among them: those that torchrun started, else one."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
