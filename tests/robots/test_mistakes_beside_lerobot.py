"""The classic mistakes, in a plain LeRobot pipeline as well: which of them it notices. docs/mistakes.md shows both.

A policy of random weights with LeRobot's own processors and statistics, asked through its `predict_action`. A mistake
is made where a user makes it: in the observation, in the statistics, or in the robot it is asked for. What is made on
the way from the action to the arm reaches no code of LeRobot's: there is nothing to run, and no row in the table.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from .test_classic_mistakes import ACTION, LATE, MISFITS, MISTAKES, STATE

Table = Mapping[str, Any]
DOCS = Path(__file__).parents[2] / "docs" / "mistakes.md"
CAMERAS = ("front", "wrist")
STATISTICS = {"observation.state": STATE, "action": ACTION}


def observation() -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    images = {f"observation.images.{name}": rng.integers(0, 256, (32, 32, 3), np.uint8) for name in CAMERAS}
    state = rng.uniform(STATE.q01, STATE.q99).astype(np.float32)
    return images | {"observation.state": state}


def on_images(change: Callable[[Any], Any]) -> Callable[[Table], dict[str, Any]]:
    return lambda o: {k: np.ascontiguousarray(change(v)) if "images" in k else v for k, v in o.items()}


def on_state(change: Callable[[Any], Any]) -> Callable[[Table], dict[str, Any]]:
    return lambda o: {**o, "observation.state": change(o["observation.state"])}


def on_statistics(key: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Table], dict[str, Any]]:
    return lambda s: {**s, key: {**s[key], **change(s[key])}}


def times(factor: float, count: int) -> NDArray[np.float32]:
    return np.array([factor] * count + [1.0] * (10 - count), np.float32)


IN_OBSERVATION: dict[str, Callable[[Table], dict[str, Any]]] = {
    "swapped state dimensions": on_state(lambda s: s[[1, 0, *range(2, 10)]]),
    "state in millimetres": on_state(lambda s: s * times(1000, 3)),
    "millimetres undeclared": on_state(lambda s: s * times(1000, 3)),
    "quaternion in the state": on_state(lambda s: np.concatenate([s[:3], [1, 0, 0, 0], s[7:]]).astype(np.float32)),
    "wrong camera": lambda o: {k.replace("front", "overhead"): v for k, v in o.items()},
    "BGR images": on_images(lambda v: v[..., ::-1]),
    "cropped images": on_images(lambda v: v[2:-2, 2:-2]),
    "images scaled to one": on_images(lambda v: v.astype(np.float32)),  # not scaled, that is: LeRobot scales bytes only
    "another resolution": on_images(lambda v: v[::2, ::2]),
    "a camera too few": lambda o: {k: v for k, v in o.items() if "wrist" not in k},
    "a camera too many": lambda o: o | {"observation.images.third": o["observation.images.front"]},
    "channels first": on_images(lambda v: v.transpose(2, 0, 1)),
    "an alpha channel": on_images(lambda v: v[:, :, [0, 1, 2, 0]]),
    "float64 state": on_state(lambda s: s.astype(np.float64)),
    "a batch dimension": on_state(lambda s: s[None]),
    "NaN in the state": on_state(lambda s: s * np.float32(np.nan)),
    "state too short": on_state(lambda s: s[:7]),
}
IN_STATISTICS: dict[str, Callable[[Table], dict[str, Any]]] = {
    "actions in millimetres undeclared": on_statistics(
        "action", lambda s: {k: v * times(1000, 3)[:7] for k, v in s.items()}
    ),
    "statistics of another robot": on_statistics(
        "observation.state", lambda s: {k: v * times(0.45, 2) for k, v in s.items()}
    ),
    "statistics of swapped dimensions": on_statistics(
        "observation.state", lambda s: {k: v[[2, 1, 0, *range(3, 10)]] for k, v in s.items()}
    ),
    "extremes for quantiles": on_statistics("observation.state", lambda s: {"q01": s["min"], "q99": s["max"]}),
    "q01 and q99 swapped": on_statistics("action", lambda s: {"q01": s["q99"], "q99": s["q01"]}),
    "no statistics": lambda s: {k: v for k, v in s.items() if k != "observation.state"},
}
ANOTHER_ROBOT = "another robot"
# Names, units, frames, polarity and rate stand nowhere in a policy's folder, so nothing compares them with the arm's.
UNSAID = (
    "swapped action dimensions",
    "degrees declared",
    "gripper polarity",
    "tool frame for base frame",
    "wrong rate",
)
NOTICED = {
    "wrong camera",
    "a camera too few",
    "channels first",
    "an alpha channel",
    "float64 state",
    "a batch dimension",
    "state too short",
}


def ask(folder: Path, seen: Table, statistics: Table, robot: str = "fr3") -> NDArray[np.float32]:
    """One action from LeRobot's pipeline, for a robot of that type."""
    import torch
    from lerobot.common.control_utils import predict_action
    from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

    torch.manual_seed(0)
    images = {
        f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, 32, 32)) for name in CAMERAS
    }  # as the demonstrations had them
    modes = {"STATE": "QUANTILES", "ACTION": "QUANTILES", "VISUAL": "IDENTITY"}
    config = make_policy_config(
        "act",
        device="cpu",
        input_features=images | {"observation.state": PolicyFeature(FeatureType.STATE, (10,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (7,))},
        normalization_mapping={kind: NormalizationMode[mode] for kind, mode in modes.items()},
        chunk_size=8,
        n_action_steps=4,
        dim_model=32,
        n_heads=2,
        dim_feedforward=32,
        n_encoder_layers=1,
        n_vae_encoder_layers=1,
        latent_dim=8,
        pretrained_backbone_weights=None,
    )
    policy = get_policy_class("act")(config).eval()
    before, after = make_pre_post_processors(config, dataset_stats=dict(statistics))
    for part in (before, after):
        part.save_pretrained(folder)
    before, after = make_pre_post_processors(config, pretrained_path=str(folder))
    told = {key: value.copy() for key, value in seen.items()}
    action = predict_action(told, policy, torch.device("cpu"), before, after, False, "lift", robot)
    return np.asarray(action, np.float32)


def statistics() -> dict[str, dict[str, NDArray[np.float32]]]:
    names = ("q01", "q99", "min", "max", "mean", "std")
    return {key: {n: np.array(getattr(s, n), np.float32) for n in names} for key, s in STATISTICS.items()}


def outcome(mistake: str, folder: Path) -> str:
    """`noticed`, or `acts on it`."""
    seen = IN_OBSERVATION.get(mistake, dict)(observation())
    told = IN_STATISTICS.get(mistake, dict)(statistics())
    try:
        ask(folder, seen, told, "ur5e" if mistake == ANOTHER_ROBOT else "fr3")
    except Exception:  # whatever it raises: nothing moves
        return "noticed"
    return "acts on it"


def test_it_acts_on_what_is_right(tmp_path: Path) -> None:
    assert np.isfinite(ask(tmp_path, observation(), statistics())).all()


@pytest.mark.parametrize("mistake", [*IN_OBSERVATION, *IN_STATISTICS, ANOTHER_ROBOT])
def test_which_it_notices(mistake: str, tmp_path: Path) -> None:
    found = outcome(mistake, tmp_path)
    assert found == ("noticed" if mistake in NOTICED else "acts on it")
    assert f"| {mistake} | {ours(mistake)} | {found} |" in DOCS.read_text()


def test_what_it_cannot_notice_is_in_no_row() -> None:
    """But beside the table, with what refuses it here."""
    text = DOCS.read_text()
    for mistake in UNSAID:
        assert f"| {mistake} |" not in text
        assert f"{mistake} ({ours(mistake)})" in text.replace("\n", " ")


def ours(mistake: str) -> str:
    """What refuses it here: a field of the contract, or the beginning of what is said."""
    if mistake in MISTAKES:
        return f"`{MISTAKES[mistake][1]}`"
    return f"`{MISFITS[mistake][1].__name__}`" if mistake in MISFITS else "`MissingStatistics`"


def test_every_mistake_here_is_in_the_other_table() -> None:
    known = {*MISTAKES, *MISFITS, *LATE, "no statistics"}
    assert {*IN_OBSERVATION, *IN_STATISTICS, ANOTHER_ROBOT, *UNSAID} <= known
