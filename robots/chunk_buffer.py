"""Which action is in force now: chunks on a common clock, spliced as new ones arrive."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from volar.robots.action_space import ActionSpec
from volar.robots.interface import ActionChunk, ActionPrefix

Vector = NDArray[np.float64]

# Why a chunk was refused; `ChunkBuffer.push` returns one of these.
EMPTY: Final = "chunk_empty"
WRONG_WIDTH: Final = "chunk_wrong_width"
NON_FINITE: Final = "chunk_non_finite"
WRONG_RATE: Final = "chunk_wrong_rate"
FUTURE: Final = "chunk_from_the_future"
PAST: Final = "chunk_entirely_past"
OLDER: Final = "chunk_older_than_current"
DUPLICATE: Final = "chunk_duplicate"
RETIRED: Final = "chunk_from_before_the_start"
REFUSALS: Final = (EMPTY, WRONG_WIDTH, NON_FINITE, WRONG_RATE, FUTURE, PAST, RETIRED, DUPLICATE, OLDER)


class ChunkBuffer:
    """Time-indexed actions of one `ActionSpec`.

    A chunk is placed on the clock by its stamp, so that a slow policy loses the part of its answer that
    has passed and is never executed late. Its rules:

    - overlapping: a new chunk is blended linearly with what was in force before it, over `blend_s` [s] from the
      moment it arrives, or from the end of the frozen prefix (`freeze`); the gripper, being a decision and not a
      motion, is not. A blend that is not over goes on underneath, so that no arrival makes a jump.
    - waiting for the end of the frozen prefix, a chunk is replaced by a newer one and never executed.
    - out of order, duplicate, empty, with a NaN, or otherwise wrong: refused by name, what is in force stays.
    - values are clipped into the bounds of the spec.
    """

    def __init__(self, spec: ActionSpec, blend_s: float = 0.1) -> None:
        if blend_s < 0:
            raise ValueError(f"blend_s must not be negative, is {blend_s}")
        self.spec = spec
        self._blend_ns = round(blend_s * 1e9)
        self._dt_ns = round(1e9 / spec.rate_hz)
        self._low, self._high = np.array(spec.low), np.array(spec.high)
        self._blended = spec.size if spec.gripper == "none" else spec.size - 1  # leading dimensions
        self._current: _Spliced | None = None
        self._frozen_ns = self._since_ns = -(2**63)

    def push(self, chunk: ActionChunk, now_ns: int) -> str | None:
        """Splices a chunk in. Returns None when it was taken, else which of `REFUSALS` applies."""
        refusal = self._refusal(chunk, now_ns)
        if refusal is not None:
            return refusal
        before = self._current
        if before is not None and now_ns < before.from_ns:
            before = before.before
        if before is not None and now_ns - before.from_ns >= self._blend_ns:
            before.before = None  # its blend is over
        actions = np.clip(chunk.actions.astype(np.float64), self._low, self._high)  # (H, A)
        from_ns = max(now_ns, self._frozen_ns)
        self._current = _Spliced(actions, chunk.stamp_ns, self._dt_ns, from_ns, before)
        return None

    def at(self, now_ns: int) -> Vector | None:
        """The action (A,) in force, or None when there is none (never pushed, or exhausted)."""
        return None if self._current is None else self._at(self._current, now_ns)

    def freeze(self, now_ns: int, duration_s: float) -> ActionPrefix:
        """What will be executed from now on, to be handed to a policy that is asked now and answers in `duration_s`.

        No chunk changes those of its actions that begin within `duration_s`: real-time chunking (Black, Galliker and
        Levine, "Real-Time Execution of Action Chunking Flow Policies", 2025), where the policy continues from them.
        """
        actions: list[Vector] = []
        while (action := self.at(now_ns + len(actions) * self._dt_ns)) is not None:
            actions.append(action)
        frozen = min(len(actions), -(-round(duration_s * 1e9) // self._dt_ns))
        self._frozen_ns = now_ns + frozen * self._dt_ns
        return ActionPrefix(np.array(actions, np.float32).reshape(-1, self.spec.size), frozen)

    def clear(self, since_ns: int | None = None) -> None:
        """Forgets every chunk; `at` returns None until the next one.

        `since_ns`: chunks that answer an observation from before are refused from now on.
        """
        self._current, self._frozen_ns = None, -(2**63)
        self._since_ns = -(2**63) if since_ns is None else since_ns

    @property
    def ever_filled(self) -> bool:
        """True when a chunk has been taken since the last `clear`."""
        return self._current is not None

    def _at(self, chunk: "_Spliced", now_ns: int) -> Vector | None:
        new, elapsed_ns = chunk.at(now_ns), now_ns - chunk.from_ns
        if chunk.before is None or elapsed_ns >= self._blend_ns or (new is None and elapsed_ns >= 0):
            return new
        old = self._at(chunk.before, now_ns)
        if old is None or new is None:
            return new
        if elapsed_ns < 0:
            return old
        weight, moving = elapsed_ns / self._blend_ns, self._blended
        return np.concatenate([(1 - weight) * old[:moving] + weight * new[:moving], new[moving:]])

    def _refusal(self, chunk: ActionChunk, now_ns: int) -> str | None:
        steps, width = chunk.actions.shape
        if steps == 0:
            return EMPTY
        if width != self.spec.size:
            return WRONG_WIDTH
        if not np.isfinite(chunk.actions).all():
            return NON_FINITE
        if abs(round(chunk.dt_s * 1e9) - self._dt_ns) > 1000:  # one microsecond: float rounding, no more
            return WRONG_RATE
        if chunk.stamp_ns > now_ns:
            return FUTURE
        if chunk.stamp_ns + steps * self._dt_ns <= now_ns:
            return PAST
        if chunk.stamp_ns < self._since_ns:
            return RETIRED
        if self._current is not None and chunk.stamp_ns == self._current.stamp_ns:
            return DUPLICATE
        if self._current is not None and chunk.stamp_ns < self._current.stamp_ns:
            return OLDER
        return None


@dataclass
class _Spliced:
    """Actions (H, A) from a stamp on, in force from `from_ns` on, after and blended with those `before`."""

    actions: Vector
    stamp_ns: int
    dt_ns: int
    from_ns: int
    before: "_Spliced | None"

    def at(self, now_ns: int) -> Vector | None:
        index = (now_ns - self.stamp_ns) // self.dt_ns
        return self.actions[index] if 0 <= index < len(self.actions) else None
