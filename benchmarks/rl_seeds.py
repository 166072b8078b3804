"""Fine-tuning runs of several seeds together: success before and after, paired: each seed, all, and each task.

    python -P benchmarks/rl_seeds.py runs/finetuned-0 runs/finetuned-1 runs/finetuned-2

Counts of episodes are added, so the interval of all is that of the episodes run, for the policies that came out. How
much seeds differ is for the lines of the single ones to say.
"""

import json
import sys
from pathlib import Path

from volar.rl.report import SUMMARY
from volar.sim.comparison import judge, sentence
from volar.sim.paired_test import Pairs

FIELDS = ("both", "only_a", "only_b", "neither")


def pairs_of(summary: Path) -> dict[str, dict[str, Pairs]]:
    """preset -> task, or "overall" -> what both policies did in its episodes."""
    if not summary.is_file():
        raise SystemExit(f"{summary.parent} has no report (yet): volar-finetune with report_episodes above 0 writes it")
    presets = json.loads(summary.read_text())["presets"]
    judged = {
        name: {"overall": found["judged"]} | {task: both["judged"] for task, both in found["tasks"].items()}
        for name, found in presets.items()
    }
    return {
        name: {task: Pairs(*(one[field] for field in FIELDS)) for task, one in tasks.items()}
        for name, tasks in judged.items()
    }


def main(folders: list[str]) -> None:
    runs = {folder: pairs_of(Path(folder) / SUMMARY) for folder in folders}
    for preset in next(iter(runs.values())):
        print(preset)
        for folder, presets in runs.items():
            print(f"  {Path(folder).name}: {sentence(judge(presets[preset]['overall']), 'before', 'after')}")
        for task in next(iter(runs.values()))[preset]:
            every = [presets[preset][task] for presets in runs.values()]
            together = Pairs(*(sum(getattr(pairs, field) for pairs in every) for field in FIELDS))
            print(f"  all, {task}: {sentence(judge(together), 'before', 'after')}")


if __name__ == "__main__":
    main(sys.argv[1:]) if sys.argv[1:] else print(__doc__)
