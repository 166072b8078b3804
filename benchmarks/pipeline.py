"""Figures of the verbs: `python -P benchmarks/pipeline.py`.

Prints rows as in docs/benchmarks.md. Success and control figures come from the verbs named there: they take minutes
and belong to a policy, not to a machine.
"""

import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SEED = 0
EPISODES = 40
TRAIN_STEPS = 100


def collecting_and_training() -> Iterator[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        dataset, output = Path(folder) / "demos", Path(folder) / "policy"
        start = time.perf_counter()
        verb("collect", "tasks=lift", f"episodes={EPISODES}", f"seed={SEED}", f"output={dataset}")
        minutes = (time.perf_counter() - start) / 60
        yield "demonstrations [1/min, all cores, start included]", f"{EPISODES / minutes:.0f}"
        verb("train", f"dataset={dataset}", f"steps={TRAIN_STEPS}", f"seed={SEED}", f"output={output}")
        last = json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])
        yield "training, cloning [samples/s]", f"{last['samples_per_s']:.0f}"


def verb(name: str, *settings: str) -> None:
    """Runs `volar-<name>` of this environment; its output is shown only where it fails."""
    command = [str(Path(sys.executable).with_name(f"volar-{name}")), *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


def main() -> int:
    parts: tuple[Callable[[], Iterator[tuple[str, str]]], ...] = (collecting_and_training,)
    failed = False
    print(f"{platform.machine()}, Python {platform.python_version()}, seed {SEED}\n", flush=True)
    print("| figure | value |\n|---|---|", flush=True)
    for part in parts:
        try:
            for figure, value in part():
                print(f"| {figure} | {value} |", flush=True)
        except Exception as error:  # one figure that cannot be measured does not take the others with it
            failed = True
            print(f"{part.__name__}: {type(error).__name__}: {error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
