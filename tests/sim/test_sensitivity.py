"""An axis on which success depends is found, and one on which it does not is left alone."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from volar.robots.limit_margins import LimitMargins
from volar.sim.episode_record import EpisodeRecord
from volar.sim.sensitivity import sensitivities, sensitivity

COLOURS = ("oak", "steel", "cloth")


def draws(rng: np.random.Generator) -> dict[str, Any]:
    """As randomization saves them: numbers, flags, names, one value for each element, lists."""
    return {
        "table_height": float(rng.uniform(-0.02, 0.02)),
        "shadows": bool(rng.integers(2)),
        "texture": COLOURS[rng.integers(3)],
        "friction": {"block_red": float(rng.uniform(0.5, 1.2)), "block_blue": float(rng.uniform(0.5, 1.2))},
        "light": rng.uniform(0, 1, 3).tolist(),
        "delay": int(rng.integers(3)),
        "damping": {f"joint{i}": float(rng.uniform(0.5, 1.5)) for i in range(7)},
        "sensing_seed": int(rng.integers(2**31)),
        "push#interval": [{"plate": [0.0, 1.0]}, {"plate": [2.0, 3.0]}],
    }


def outcomes(seed: int, chance: Any, count: int = 400) -> list[tuple[dict[str, Any], bool]]:
    rng = np.random.default_rng(seed)
    drawn = [draws(rng) for _ in range(count)]
    return [(found, bool(rng.random() < chance(found))) for found in drawn]


def test_every_kind_of_axis_with_an_effect_is_found() -> None:
    effects: dict[str, Any] = {
        "table_height": lambda d: 0.5 + 20 * d["table_height"],
        "shadows": lambda d: 0.4 if d["shadows"] else 0.8,
        "texture": lambda d: 0.3 if d["texture"] == "steel" else 0.7,
        "friction.block_blue": lambda d: 0.2 if d["friction"]["block_blue"] < 0.7 else 0.8,
        "light.z": lambda d: 0.9 - 0.6 * d["light"][2],
        "delay": lambda d: 0.9 - 0.3 * d["delay"],
        "damping, mean of 7": lambda d: 0.5 + 2.0 * (np.mean(list(d["damping"].values())) - 1.0),
    }
    for axis, chance in effects.items():
        found = sensitivity(outcomes(0, chance))
        assert found[0]["axis"] == axis
        assert found[0]["matters"]
        assert sum(item["matters"] for item in found) <= 2
        assert len(found) == 10  # without seeds, and what was drawn within an episode
    falling = sensitivity(outcomes(0, effects["light.z"]))[0]
    assert -0.6 < falling["effect"] < -0.2
    assert falling["interval"][0] <= falling["effect"] <= falling["interval"][1] < 0
    assert [group["success_rate"] for group in falling["groups"]] == sorted(
        (group["success_rate"] for group in falling["groups"]), reverse=True
    )


def test_without_any_effect_an_evaluation_seldom_names_an_axis() -> None:
    """5 % of evaluations are allowed to; the counts of 200 scatter by 1.5 %."""
    wrong = sum(any(item["matters"] for item in sensitivity(outcomes(seed, lambda d: 0.7, 150))) for seed in range(200))
    assert wrong / 200 <= 0.095


def test_groups_hold_every_episode_and_few_are_not_judged() -> None:
    found = {item["axis"]: item for item in sensitivity(outcomes(1, lambda d: 0.7, 90))}
    for item in found.values():
        assert sum(group["episodes"] for group in item["groups"]) == 90
    assert {group["label"] for group in found["shadows"]["groups"]} == {"true", "false"}
    assert {group["label"] for group in found["texture"]["groups"]} == set(COLOURS)
    assert [group["label"] for group in found["delay"]["groups"]] == ["0", "1", "2"]
    assert sensitivity(outcomes(1, lambda d: 0.7, 12)) == []
    assert sensitivity([({"gravity": 9.81}, True)] * 50) == []  # it never varied


def test_conditions_are_judged_apart_and_uncounted_episodes_not_at_all() -> None:
    def record(index: int, condition: str, drawn: dict[str, Any], valid: bool = True) -> EpisodeRecord:
        success = drawn.get("friction", 0.0) > 0.5
        facts = ("lift", condition, index, index, "", success, 1, "", valid, "", {}, {}, LimitMargins())
        return EpisodeRecord(*facts, draws=drawn)  # type: ignore[arg-type]

    values: NDArray[np.float64] = np.random.default_rng(0).uniform(0, 1, 60)
    drawn = [{"friction": float(value)} for value in values]
    records = [record(i, "randomization:full", item) for i, item in enumerate(drawn)]
    records += [record(i, "standard", {}) for i in range(60)]
    records += [record(60 + i, "randomization:full", {"friction": 2.0}, valid=False) for i in range(60)]
    found = sensitivities(records)
    assert list(found) == ["randomization:full"]
    assert found["randomization:full"][0]["matters"]
    assert sum(group["episodes"] for group in found["randomization:full"][0]["groups"]) == 60
