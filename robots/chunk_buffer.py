"""Which action is in force now: chunks on a common clock, spliced as new ones arrive."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from volar.robots.action_space import ActionSpec
from volar.robots.interface import ActionChunk

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
    has passed and is never executed late. A new chunk is blended linearly with the one before it over
    `blend_s` [s] from the moment it arrives; the gripper, being a decision and not a motion, is not.
    Values are clipped into the bounds of the spec.
    """

    def __init__(self, spec: ActionSpec, blend_s: float = 0.1) -> None:
        if blend_s < 0:
            raise ValueError(f"blend_s must not be negative, is {blend_s}")
        self.spec = spec
        self._blend_ns = round(blend_s * 1e9)
        self._dt_ns = round(1e9 / spec.rate_hz)
        self._low, self._high = np.array(spec.low), np.array(spec.high)
        self._blended = spec.size if spec.gripper == "none" else spec.size - 1  # leading dimensions
        self._current: _Placed | None = None
        self._previous: _Placed | None = None
        self._spliced_ns = 0
        self._since_ns: int | None = None

    def push(self, chunk: ActionChunk, now_ns: int) -> str | None:
        """Splices a chunk in. Returns None when it was taken, else which of `REFUSALS` applies."""
        refusal = self._refusal(chunk, now_ns)
        if refusal is not None:
            return refusal
        self._previous, self._spliced_ns = self._current, now_ns
        actions = np.clip(chunk.actions.astype(np.float64), self._low, self._high)  # (H, A)
        self._current = _Placed(actions, chunk.stamp_ns, self._dt_ns)
        return None

    def at(self, now_ns: int) -> Vector | None:
        """The action (A,) in force, or None when there is none (never pushed, or exhausted)."""
        if self._current is None:
            return None
        new = self._current.at(now_ns)
        elapsed_ns = now_ns - self._spliced_ns
        if new is None or self._previous is None or elapsed_ns >= self._blend_ns:
            return new
        old = self._previous.at(now_ns)
        if old is None:
            return new
        weight, moving = elapsed_ns / self._blend_ns, self._blended
        return np.concatenate([(1 - weight) * old[:moving] + weight * new[:moving], new[moving:]])

    def clear(self, since_ns: int | None = None) -> None:
        """Forgets every chunk; `at` returns None until the next one.

        `since_ns`: chunks that answer an observation from before are refused from now on.
        """
        self._current = self._previous = None
        self._since_ns = since_ns

    @property
    def ever_filled(self) -> bool:
        """True when a chunk has been taken since the last `clear`."""
        return self._current is not None

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
        if self._since_ns is not None and chunk.stamp_ns < self._since_ns:
            return RETIRED
        if self._current is not None and chunk.stamp_ns == self._current.stamp_ns:
            return DUPLICATE
        if self._current is not None and chunk.stamp_ns < self._current.stamp_ns:
            return OLDER
        return None


class _Placed:
    """Actions (H, A) from a stamp on."""

    def __init__(self, actions: Vector, stamp_ns: int, dt_ns: int) -> None:
        self.actions, self.stamp_ns, self.dt_ns = actions, stamp_ns, dt_ns

    def at(self, now_ns: int) -> Vector | None:
        index = (now_ns - self.stamp_ns) // self.dt_ns
        return self.actions[index] if 0 <= index < len(self.actions) else None
