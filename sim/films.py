"""Which episodes a report shows, and their films, made by running them again."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from volar.sim.conditions import STANDARD
from volar.sim.episode_record import EpisodeRecord
from volar.sim.evaluation import Bench, Job, run_jobs


def make_films(
    output: Path, bench: Bench, records: Iterable[EpisodeRecord], count: int, workers: int
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Films `count` episodes of each task into `output/videos`; says how many gave the same bits as before."""
    chosen = {record.key: record for record in select_for_film(records, count)}
    files = {key: f"videos/{film_name(record)}" for key, record in chosen.items()}
    jobs = [Job(*key, record.seed, video=str(output / files[key])) for key, record in chosen.items()]
    again = {record.key: record for record in run_jobs(bench, jobs, workers)} if jobs else {}
    identical = sum(again[key].episode_sha256 == record.episode_sha256 for key, record in chosen.items())
    films = [
        {"task": r.task, "seed": r.seed, "instruction": r.instruction, "success": r.success, "file": files[key]}
        for key, r in chosen.items()
        if (output / files[key]).is_file()
    ]
    return films, {"episodes": len(chosen), "identical": identical}


def select_for_film(records: Iterable[EpisodeRecord], count: int) -> list[EpisodeRecord]:
    """`count` episodes of each task, failures first, but half of them successes where there are such."""
    standard = [record for record in records if record.condition == STANDARD and record.valid and not record.broken]
    chosen: list[EpisodeRecord] = []
    for task in dict.fromkeys(record.task for record in standard):
        found = sorted((record for record in standard if record.task == task), key=lambda record: record.index)
        good, bad = [r for r in found if r.success], [r for r in found if not r.success]
        failures = bad[: max(count - len(good), count - count // 2)]
        chosen += failures + good[: count - len(failures)]
    return chosen


def film_name(record: EpisodeRecord) -> str:
    return f"{record.task}_{record.index:04d}_{'success' if record.success else 'failure'}.mp4"
