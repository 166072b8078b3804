"""The folder that an evaluation leaves, and when it may be written to."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from volar.datasets.durable_file import write_durably
from volar.robots.errors import VolarError
from volar.robots.output_folder import contents
from volar.sim.episode_record import EpisodeRecord, read_records

SETTINGS, EPISODES, RESULTS, REPORT = "evaluation.json", "episodes.jsonl", "results.json", "report.html"
TIMES = "times.jsonl"
# What an evaluation writes; nothing else in a folder is ever touched.
_WRITTEN = (SETTINGS, EPISODES, TIMES, RESULTS, REPORT, "videos", "replays", "checkpoints")


class AnotherEvaluation(VolarError):
    """The folder holds episodes of another policy, or of other settings."""


def prepare(output: Path, identity: Mapping[str, Any], resume: bool, overwrite: bool) -> list[EpisodeRecord]:
    """Makes the folder; returns the episodes that an interrupted evaluation left in it.

    `identity`: what decides every episode; what an older folder does not say is taken to be the same. Raises
    `AnotherEvaluation` when that is not the one to be continued, `VolarError` when the folder holds anything else, or
    an evaluation that is neither to be continued nor replaced.
    """
    if output.exists() and not output.is_dir():
        raise VolarError(f"output {output} is a file; give a folder")
    found = contents(output)
    settings = output / SETTINGS
    records: list[EpisodeRecord] = []
    if resume and settings.is_file():
        before = _identity_of(settings)
        both = {key: (before[key], now) for key, now in identity.items() if key in before}
        changed = [f"{key} was {was}, is {now}" for key, (was, now) in both.items() if was != now]
        if changed:
            raise AnotherEvaluation(
                f"{output} holds another evaluation ({'; '.join(changed)}); go back to what was, give another output=, "
                "or replace it with overwrite=true"
            )
        records, identity = read_records(output / EPISODES), before | dict(identity)
    elif found and SETTINGS not in found:
        raise VolarError(f"output {output} holds something else ({', '.join(found[:4])}); give another output=")
    elif found and not overwrite:
        raise VolarError(
            f"output {output} holds an evaluation; resume=true continues it, overwrite=true replaces it, "
            "or give another output="
        )
    elif found:
        for name in _WRITTEN:
            path = output / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    output.mkdir(parents=True, exist_ok=True)
    write_whole(settings, json.dumps(identity, indent=1) + "\n")
    return records


def _identity_of(settings: Path) -> dict[str, Any]:
    try:
        found = json.loads(settings.read_text())
        if not isinstance(found, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        raise VolarError(f"{settings} cannot be read ({error}); overwrite=true begins anew") from error
    return found


def write_whole(path: Path, text: str) -> Path:
    """The file complete, or not there at all; see `write_durably`. Returns its path."""
    write_durably(path, text.encode())
    return path


def read_results(path: Path) -> dict[str, Any]:
    """results.json of an evaluation, from its folder or by its own name. Raises `VolarError` where there is none."""
    file = path / RESULTS if path.is_dir() else path
    if not file.is_file():
        raise VolarError(f"no {RESULTS} at {path}; give the output folder of a volar-evaluate that has ended")
    try:
        found = json.loads(file.read_text())
        if not isinstance(found, dict) or not {"episodes", "tasks", "overall", "seed"} <= found.keys():
            raise ValueError("it has no episodes")
    except ValueError as error:
        raise VolarError(f"{file} is not the result of an evaluation ({error})") from error
    return found
