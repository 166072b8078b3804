"""Time of one chunk from one observation, batch one, one thread: exported artifact and torch checkpoint.

python -P benchmarks/inference.py [POLICY ...]

Without a policy: the shipped one, and its artifact exported for the occasion.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported

import numpy as np
from rich.console import Console
from rich.table import Table

from volar.robots.interface import Observation, Policy
from volar.robots.policies import default_policy, load_policy

WARM_UP = 20
SEED = 0


def observations(policy: Policy, count: int = 16) -> list[Observation]:
    """Random ones that fit the policy's contract."""
    rng, contract = np.random.default_rng(SEED), policy.contract
    return [
        Observation(
            {c.name: rng.integers(0, 256, (c.height, c.width, 3), np.uint8) for c in contract.cameras},
            rng.normal(size=len(contract.state_names)).astype(np.float32),
            "lift the red block",
            0,
        )
        for _ in range(count)
    ]


def latencies_ms(policy: Policy, repeats: int) -> np.ndarray:
    """Times of `repeats` predictions after a warm-up: (repeats,) [ms]."""
    samples = observations(policy)
    times = np.empty(WARM_UP + repeats)
    for i in range(len(times)):
        start = time.perf_counter()
        policy.predict(samples[i % len(samples)])
        times[i] = (time.perf_counter() - start) * 1e3
    return times[WARM_UP:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policies", type=Path, nargs="*", help="artifacts, policy directories or training runs")
    parser.add_argument("--repeats", type=int, default=1000)
    options = parser.parse_args()
    table = Table(title=f"inference (ms), batch 1, one thread, {options.repeats} chunks")
    for column in ("policy", "runs on", "p50", "p99", "max"):
        table.add_column(column, justify="left" if column in ("policy", "runs on") else "right")
    with tempfile.TemporaryDirectory() as folder:
        for path in options.policies or shipped(Path(folder)):
            add_row(table, path, options.repeats)
    Console().print(table)


def shipped(folder: Path) -> tuple[Path, Path]:
    """The shipped policy, and its artifact in `folder`."""
    from volar.vla.export import ExportConfig, export

    export(ExportConfig(output=folder / "artifact"))
    return default_policy(), folder / "artifact"


def add_row(table: Table, path: Path, repeats: int) -> None:
    policy = load_policy(path)
    times = latencies_ms(policy, repeats)
    figures = (*np.percentile(times, [50, 99]), times.max())
    runtime = "ONNX Runtime" if type(policy).__name__ == "ExportedPolicy" else "PyTorch"
    table.add_row(path.name, runtime, *(f"{value:.2f}" for value in figures))


if __name__ == "__main__":
    main()
