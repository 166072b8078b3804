"""Which time the controller lives in: the machine's own, or that of a simulation."""

import threading
import time
from typing import Final, Protocol

from volar.robots.real_time import Pacer

STALLED_S: Final = 0.5  # a simulated clock that stands still for so long does not make a stopping arm wait
AHEAD_NS: Final = 100_000_000  # stamps may be so far ahead of `/clock`, which is heard after what it belongs to


class LoopClock(Protocol):
    """The loop's clock and its deadlines."""

    @property
    def waits_for(self) -> tuple[str, ...]:
        """What must come before time has a meaning."""
        ...

    def now_ns(self) -> int: ...

    def stamp_ns(self, header_ns: int, ros_now_ns: int) -> int:
        """A message's stamp on this clock. `ros_now_ns`: the present on the clock that headers are stamped with."""
        ...

    def start(self) -> None: ...

    def wait(self, leaving: threading.Event) -> bool:
        """Returns at the next deadline; False where none will come any more and the arm is to be left."""
        ...


class WallClock:
    """Monotonic time: it never jumps, whatever is done to the machine's date."""

    waits_for: tuple[str, ...] = ()

    def __init__(self, period_ns: int) -> None:
        self._pacer = Pacer(period_ns)

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def stamp_ns(self, header_ns: int, ros_now_ns: int) -> int:
        return on_loop_clock(header_ns, ros_now_ns, self.now_ns())

    def start(self) -> None:
        self._pacer.start()

    def wait(self, leaving: threading.Event) -> bool:
        self._pacer.wait()
        return True


class SimulatedClock:
    """Time from `/clock`: one deadline each period of it, one for several that pass at once."""

    def __init__(self, period_ns: int) -> None:
        self._period_ns = period_ns
        self._changed = threading.Condition()
        self._now_ns = self._due_ns = 0
        self._heard = False

    @property
    def waits_for(self) -> tuple[str, ...]:
        return () if self._heard else ("/clock",)

    def advance(self, now_ns: int) -> None:
        """A message on `/clock` has come."""
        with self._changed:
            if now_ns < self._now_ns:  # another run of the simulation: the loop sees the jump at once
                self._due_ns = now_ns
            self._now_ns, self._heard = now_ns, True
            self._changed.notify_all()

    def now_ns(self) -> int:
        return self._now_ns

    def stamp_ns(self, header_ns: int, ros_now_ns: int) -> int:
        """The header's. One of another clock, and none at all, count as of now: else nothing would ever be stale."""
        now_ns = self._now_ns
        return header_ns if not self._heard or 0 < header_ns <= now_ns + AHEAD_NS else now_ns

    def start(self) -> None:
        with self._changed:
            self._due_ns = self._now_ns

    def wait(self, leaving: threading.Event) -> bool:
        with self._changed:
            while self._now_ns < self._due_ns:
                if not self._changed.wait(STALLED_S) and leaving.is_set():
                    return False
            behind = (self._now_ns - self._due_ns) // self._period_ns
            self._due_ns += (behind + 1) * self._period_ns
            return True


def on_loop_clock(header_ns: int, ros_now_ns: int, loop_now_ns: int) -> int:
    """A message's stamp on the loop's clock [ns]: as old as its header says, and never of the future.

    A header without a stamp, or from a machine whose clock runs ahead, counts as of now: its age is then the
    receiver's to judge.
    """
    return loop_now_ns - max(0, ros_now_ns - header_ns) if header_ns > 0 else loop_now_ns
