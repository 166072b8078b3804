"""Time and memory of one chunk, batch one, for each way of computing it, and how far each is from the floor.

    python -P benchmarks/inference.py [POLICY] [--repeats 1000] [--threads 1]

POLICY: a policy directory or a training run; the shipped one by default. Each backend runs in a process of its own, on
the same observations. The floor: the network's multiplications at the rate of a large matrix product on this machine,
or its weights at the rate of reading memory, whichever takes longer.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from volar.robots.interface import Observation, Policy

WARM_UP = 50
BACKENDS = ("PyTorch eager", "PyTorch compiled", "AOTInductor", "ONNX Runtime fp32", "ONNX Runtime int8")


def observations(policy: Policy, count: int = 16) -> list[Observation]:
    """Random ones that fit the policy's contract."""
    rng, contract = np.random.default_rng(0), policy.contract
    return [
        Observation(
            {c.name: rng.integers(0, 256, (c.height, c.width, 3), np.uint8) for c in contract.cameras},
            rng.normal(size=len(contract.state_names)).astype(np.float32),
            "lift the red block",
            0,
        )
        for _ in range(count)
    ]


def load(backend: str, folder: Path, threads: int) -> Policy:
    """The policy of `folder`: a checkpoint for PyTorch, an artifact for the others."""
    if not backend.startswith("PyTorch"):
        from volar.robots.exported_policy import ExportedPolicy

        return ExportedPolicy(folder, threads=threads)
    import torch

    from volar.vla.checkpoint_policy import load as load_checkpoint

    torch.set_num_threads(threads)
    policy = load_checkpoint(folder)
    if backend == "PyTorch compiled":
        policy.graph.model = torch.compile(policy.graph.model)  # type: ignore[assignment]
    return policy


def measure(backend: str, folder: Path, repeats: int, threads: int) -> dict[str, float]:
    """In this process: latencies [ms] and resident memory [MB]."""
    policy = load(backend, folder, threads)
    samples, times = observations(policy), np.empty(WARM_UP + repeats)
    for i in range(len(times)):
        start = time.perf_counter()
        policy.predict(samples[i % len(samples)])
        times[i] = (time.perf_counter() - start) * 1e3
    p50, p99 = np.percentile(times[WARM_UP:], [50, 99])
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return {"p50": float(p50), "p99": float(p99), "MB": resident}


def floor_ms(folder: Path, threads: int) -> dict[str, float]:
    """What the arithmetic and the memory of this machine allow: GFLOP, GFLOP/s, MB, GB/s, and the time [ms]."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from volar.vla.checkpoint_policy import load as load_checkpoint

    torch.set_num_threads(threads)
    policy = load_checkpoint(folder)
    with FlopCounterMode(display=False) as counter:
        policy.predict(observations(policy, 1)[0])
    weights = sum(p.numel() * p.element_size() for p in policy.graph.model.parameters())
    a, big = torch.randn(1024, 1024), torch.randn(64 * 2**20 // 4)
    rate = 2 * 1024**3 / best_s(lambda: a @ a)
    bandwidth = big.numel() * 4 / best_s(big.sum)
    flop = counter.get_total_flops()
    ms = 1e3 * max(flop / rate, weights / bandwidth)
    return {"GFLOP": flop / 1e9, "GFLOP/s": rate / 1e9, "MB": weights / 1e6, "GB/s": bandwidth / 1e9, "ms": ms}


def best_s(work: Any, repeats: int = 20) -> float:
    """The shortest of some runs [s]: what the machine can do when nobody else wants it."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", type=Path, nargs="?", help="policy directory or training run")
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backend", choices=(*BACKENDS, "floor"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.backend:
        found = (
            floor_ms(options.policy, options.threads)
            if options.backend == "floor"
            else measure(options.backend, options.policy, options.repeats, options.threads)
        )
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))


def compare(options: argparse.Namespace, folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from volar.robots.errors import VolarError
    from volar.robots.policies import default_policy, find_policy
    from volar.vla.export import ExportConfig, export

    policy = find_policy(options.policy or default_policy())
    places = {"PyTorch eager": policy, "PyTorch compiled": policy}
    for precision in ("fp32", "int8"):
        places[f"ONNX Runtime {precision}"] = folder / precision
        export(ExportConfig(policy=policy, output=folder / precision, precision=precision))  # type: ignore[arg-type]
    places["AOTInductor"] = folder / "pt2"
    try:
        export(ExportConfig(policy=policy, output=folder / "pt2", format="pt2"))
    except VolarError as error:  # no compiler, for one; its row says that it does not run
        print(f"AOTInductor: {error}", file=sys.stderr)
    floor = in_process("floor", policy, options)
    table = Table(title=f"{policy.name}: one chunk, batch 1, {options.threads} thread(s), {options.repeats} repeats")
    for column in ("", r"p50 \[ms]", r"p99 \[ms]", "eager's p50 /", "/ floor", r"resident \[MB]"):
        table.add_column(column, justify="right" if column else "left")
    eager = 0.0
    for backend in BACKENDS:
        found = in_process(backend, places[backend], options)
        if not found:
            table.add_row(backend, "does not run here")
            continue
        eager = eager or found["p50"]
        cells = (found["p50"], found["p99"], eager / found["p50"], found["p50"] / floor["ms"])
        table.add_row(backend, *(f"{cell:.2f}" for cell in cells), f"{found['MB']:.0f}")
    Console().print(table)
    print(
        "floor: {GFLOP:.3f} GFLOP at {GFLOP/s:.0f} GFLOP/s, {MB:.1f} MB at {GB/s:.1f} GB/s: {ms:.2f} ms".format(**floor)
    )


def in_process(backend: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """`measure` or `floor_ms` in a fresh interpreter; empty where it fails, whose last line is printed."""
    command = [sys.executable, "-P", __file__, str(folder), f"--backend={backend}"]
    command += [f"--repeats={options.repeats}", f"--threads={options.threads}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        print(f"{backend}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return {}
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
