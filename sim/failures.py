"""Why episodes failed: they broke down, a fault stopped the arm for good, or their time was over."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from volar.robots.loop_state import LATCHING

Episode = Mapping[str, Any]
OUT_OF_TIME, BROKE = "ran out of time", "broke down"


def why_failed(episode: Episode) -> str:
    """Of an episode that counts and did not succeed, as `EpisodeRecord.to_dict` has it."""
    if episode["broken"]:
        return BROKE
    faults = {reason: periods for reason, periods in episode["holds"].items() if reason in LATCHING}
    return f"stopped by {max(faults, key=faults.__getitem__)}" if faults else OUT_OF_TIME


def failures(episodes: Iterable[Episode]) -> str:
    """`of 3 failures: 2 ran out of time, 1 broke down`, the most frequent first; empty where nothing failed."""
    counts = Counter(why_failed(episode) for episode in episodes if episode["valid"] and not episode["success"])
    if not counts:
        return ""
    total = counts.total()
    said = ", ".join(f"{count} {why}" for why, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    return f"of {total} {'failure' if total == 1 else 'failures'}: {said}"
