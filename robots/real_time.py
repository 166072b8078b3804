"""A loop that keeps its period on the wall clock: deadlines, scheduling before other programs, no collector."""

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

PRIORITY = 20  # of SCHED_FIFO, 1 to 99: above ordinary threads, below the kernel's interrupt threads (50)
SPIN_S = 0.0003  # a sleep overshoots by 0.06 to 0.2 ms on Linux; the rest is waited for awake


class Pacer:
    """Deadlines `period_ns` apart since `start`; time in nanoseconds since then."""

    def __init__(
        self,
        period_ns: int,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.period_ns = period_ns
        self._clock, self._sleep = clock, sleep
        self._start_ns, self._index = 0, 0

    def start(self) -> None:
        """The first deadline is now."""
        self._start_ns, self._index = self._clock(), -1

    @property
    def now_ns(self) -> int:
        return self._clock() - self._start_ns

    def wait(self) -> int:
        """Returns at the next deadline, or at once when it has passed. The periods that passed entirely are left
        out, not made up for; returns how many."""
        deadline_ns = (self._index + 1) * self.period_ns
        skipped = max(0, (self.now_ns - deadline_ns) // self.period_ns)
        self._index += 1 + skipped
        while (left_s := (self._index * self.period_ns - self.now_ns) / 1e9) > 0:
            if left_s > SPIN_S:
                self._sleep(left_s - SPIN_S)
        return skipped


@contextmanager
def real_time_scheduling() -> Iterator[bool]:
    """This thread before every ordinary one (SCHED_FIFO), where the system lets it: says whether it does.

    Threads and processes started meanwhile are ordinary. On a desktop the user needs `rtprio` in
    /etc/security/limits.conf, as for any real robot's driver; without it the loop competes like other programs.
    """
    if not hasattr(os, "SCHED_RESET_ON_FORK"):  # not on Linux
        yield False
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY))
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        # The flag stays: Linux lets nobody without CAP_SYS_NICE clear it. Nor may leaving cost what the loop has done.
        with suppress(OSError):
            os.sched_setscheduler(0, policy | os.SCHED_RESET_ON_FORK, parameters)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """A collection takes up to tens of milliseconds with everything that is imported."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
