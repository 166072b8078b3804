"""A percentile over the latest values, kept sorted as they come and go."""

from bisect import bisect_left, insort
from collections import deque


class RollingPercentile:
    """Percentiles of the last `window` values; an older one is evicted. `add` costs O(window), for hundreds."""

    def __init__(self, window: int = 100) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, is {window}")
        self.window = window
        self._latest: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._latest)

    def add(self, value: float) -> None:
        """Raises `ValueError` for a NaN, which has no place in an order."""
        if value != value:
            raise ValueError("a NaN has no rank")
        if len(self._latest) == self.window:
            del self._sorted[bisect_left(self._sorted, self._latest.popleft())]
        self._latest.append(value)
        insort(self._sorted, value)

    def at(self, percent: float) -> float | None:
        """The percentile, linear between neighbours as `numpy.percentile`; None without values.

        Raises `ValueError` for a percentage outside 0 to 100.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"percent must be from 0 to 100, is {percent}")
        values = self._sorted.copy()  # another thread may add meanwhile
        if not values:
            return None
        place = percent / 100 * (len(values) - 1)
        below = int(place)
        above = min(below + 1, len(values) - 1)
        return values[below] + (place - below) * (values[above] - values[below])

    def clear(self) -> None:
        self._latest.clear()
        self._sorted.clear()
