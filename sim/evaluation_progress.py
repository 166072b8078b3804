"""Running what is missing of an evaluation, with a progress bar; what is done is kept, whatever comes after."""

from collections.abc import Sequence

from volar.sim.conditions import STANDARD
from volar.sim.episode_record import EpisodeRecord, append_record
from volar.sim.episode_times import EpisodeTimes
from volar.sim.evaluation import Bench, run_jobs
from volar.sim.evaluation_folder import EPISODES
from volar.sim.evaluation_plan import Plan


def run_plan(bench: Bench, plan: Plan, before: Sequence[EpisodeRecord], workers: int) -> list[EpisodeRecord]:
    """Runs the plan's episodes that are not among those of `before`; returns all. Each record is on the disk as soon
    as its episode is over."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    records = list(before)
    for record in records:
        plan.add(record)
    left = plan.wanted - plan.done
    if left == 0:
        return records
    columns = (TextColumn("episodes"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    times = EpisodeTimes(plan.output)
    with Progress(*columns, TimeRemainingColumn()) as bar:
        shown = bar.add_task("", total=plan.wanted, completed=plan.done)
        standard = [record.success for record in records if record.condition == STANDARD and record.valid]
        for record in run_jobs(bench, plan.missing(), min(workers, left)):
            times.add()
            append_record(plan.output / EPISODES, record)
            records.append(record)
            plan.add(record)
            if record.condition == STANDARD and record.valid:
                standard.append(record.success)
            note = f"success {sum(standard)}/{len(standard)}" if record.condition == STANDARD else record.condition
            bar.update(shown, completed=plan.done, total=plan.wanted, description=note)
    return records
