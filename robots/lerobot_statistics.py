"""Whether a LeRobot policy directory carries every statistic that its processors need.

LeRobot passes a value through unchanged where its statistics are missing, so that a policy moves the arm by normalized
numbers; here that is an error before anything is loaded. NumPy only: no torch, no LeRobot.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from volar.robots.errors import VolarError

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
# What each of LeRobot's normalization modes divides by (`processor/normalize_processor.py`).
NEEDED: Final = {
    "IDENTITY": (),
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}
Statistics = Mapping[str, NDArray[Any]]


class MissingStatistics(VolarError):
    """Normalization without numbers. `wanted`, `found`: keys such as `action.mean`."""

    def __init__(self, folder: Path, file: str, wanted: list[str], found: list[str]) -> None:
        self.wanted, self.found = sorted(wanted), sorted(found)
        super().__init__(
            f"{folder}: {file} normalizes without statistics: {', '.join(self.wanted)} missing, found "
            f"{', '.join(self.found) or 'none'}; LeRobot would pass these values through unchanged. Save the "
            "processors with the dataset's statistics: make_pre_post_processors(config, dataset_stats=...)"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Raises `VolarError` when the file is missing, cannot be read, or holds no object."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise VolarError(f"{path} cannot be read: {error}; a LeRobot policy directory has one") from error
    if not isinstance(found, dict):
        raise VolarError(f"{path} holds no object; the checkpoint is damaged")
    return found


def require_statistics(folder: Path, config: Mapping[str, Any]) -> str:
    """SHA-256 over all statistics of the directory, when none is missing.

    `config`: of `config.json`. Raises `MissingStatistics` naming the keys wanted and found, `VolarError` for values
    that are not finite or a mode that LeRobot does not have.
    """
    inputs = {key: feature for key, feature in config["input_features"].items() if "empty_camera" not in key}
    digest = hashlib.sha256()
    for file, step_name, features in (
        (PREPROCESSOR, "normalizer_processor", inputs),
        (POSTPROCESSOR, "unnormalizer_processor", config["output_features"]),
    ):
        found = _check(folder, file, step_name, features, config.get("normalization_mapping") or {})
        for key, value in sorted(found.items()):
            digest.update(f"{file} {key} {value.shape} ".encode() + np.asarray(value, np.float64).tobytes())
    return digest.hexdigest()


def steps(folder: Path, file: str) -> list[dict[str, Any]]:
    """The steps of a pipeline, in order. Raises `VolarError` when the file is damaged."""
    found = read_json(folder / file).get("steps")
    if not isinstance(found, list) or not all(isinstance(step, dict) for step in found):
        raise VolarError(f"{folder / file} has no steps; save it with LeRobot 0.6 or newer")
    return found


def _check(
    folder: Path, file: str, step_name: str, features: Mapping[str, Any], mapping: Mapping[str, str]
) -> Statistics:
    chosen = [step for step in steps(folder, file) if step.get("registry_name") == step_name]
    found: dict[str, NDArray[Any]] = {}
    listed: dict[str, str] = {}  # key -> mode
    for step in chosen:
        config = step.get("config") or {}
        only = config.get("normalize_observation_keys")
        for key, feature in (config.get("features") or {}).items():
            if only is None or key in only or feature["type"] == "ACTION":
                listed[key] = (config.get("norm_map") or {}).get(feature["type"], "IDENTITY")
        if step.get("state_file") and (folder / step["state_file"]).is_file():
            found |= _load(folder / step["state_file"])
    wanted = []
    for key, feature in features.items():
        mode = listed.get(key) or mapping.get(feature["type"], "IDENTITY")
        if mode not in NEEDED:
            raise VolarError(f"{folder / file}: {key} has the mode {mode!r}, choices: {', '.join(NEEDED)}")
        wanted += [f"{key}.{name}" for name in NEEDED[mode]]
    missing = [key for key in wanted if key not in found or (key.rsplit(".", 1)[0] not in listed)]
    if missing:
        raise MissingStatistics(folder, file, missing, [key for key in found if key.rsplit(".", 1)[0] in features])
    for key in wanted:
        if not np.isfinite(found[key]).all():
            raise VolarError(f"{folder / file}: the statistic {key} is not finite: {found[key].ravel()}")
    return {key: found[key] for key in wanted}


def _load(path: Path) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise VolarError(f"{path} cannot be read: {error}; the checkpoint is damaged") from error
