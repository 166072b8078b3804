"""LeRobot's pipelines around `VolarPolicy`.

Normalization is inside the policy's graph, by its contract: LeRobot's normalizers are there, since its programs
address them by name, but are the identity for every kind of feature. The two JSON files here are these pipelines,
saved; a policy directory that volar-train writes has copies.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any

from lerobot.policies.factory import make_pre_post_processors

from volar.vla.lerobot_plugin.configuration_volar import VolarConfig

SAVED = Path(str(files("volar.vla") / "lerobot_plugin"))


def make_volar_pre_post_processors(config: VolarConfig, dataset_stats: Any = None) -> tuple[Any, Any]:
    """(before, after) the policy. `dataset_stats` change nothing."""
    overrides = {"device_processor": {"device": config.device}}
    return make_pre_post_processors(config, str(SAVED), preprocessor_overrides=overrides)  # type: ignore[no-any-return]
