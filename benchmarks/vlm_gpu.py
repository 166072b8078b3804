"""Training and inference of policies of pretrained size on a GPU: samples/s, MFU, latency, eager and compiled.

    python -P benchmarks/vlm_gpu.py [--sizes 500M 2.2B] [--frozen vision] [--minutes 8] [--output FILE.jsonl]
    python -P benchmarks/vlm_gpu.py --tiny          # the whole path on a CPU, where the figures mean nothing

Random weights in the dimensions of SmolVLM2 and random frames of two cameras: nothing is downloaded. Training is
`volar-train`'s own step, loading included, in bf16, with weights and optimizer in float32; layers are computed twice
(gradient checkpointing), and then batches are smaller, only where memory does not suffice. Inference is the policy
class that deploys, asked for one chunk after another, with weights in bfloat16; `graphs` is torch.compile with CUDA
graphs. Each size has a process of its own and its share of the minutes; a measurement that fails is a line that says
why. Every measurement is a line of JSON as soon as it is done.

MFU: see `vlm_flop.py`.
"""

import argparse
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from volar.robots.contract import PolicyContract
    from volar.vla.processor_volar import TorchPolicy
    from volar.vla.training_run import TrainingRun

VLM = runpy.run_path(str(Path(__file__).with_name("vlm_inference.py")))
FLOP = runpy.run_path(str(Path(__file__).with_name("vlm_flop.py")))
SIZES: dict[str, dict[str, int]] = VLM["SIZES"]
PARTS: tuple[str, ...] = FLOP["PARTS"]
BATCH = {"tiny": 4, "256M": 64, "500M": 32, "2.2B": 16}
CAMERAS = ("front", "wrist")
INSTRUCTION = "lift the red block"
LEARNING_RATE = 1e-5
WARM_UP, DECISIONS = 5, 100
STEPS, SECONDS = 5, 8.0  # a window of training: at least as many, and as long


def write_inputs(size: str, folder: Path, device: str) -> "PolicyContract":
    """`backbone/` and a dataset `data/` of random frames in the folder; the contract of both."""
    import torch

    from volar.datasets.frame_cache import FrameCache
    from volar.robots.contract import CameraSpec, PolicyContract
    from volar.robots.policies import default_policy

    with torch.device(device):  # where drawing two billion weights takes no time
        VLM["write_backbone"](size, folder / "backbone")
    rng, image, count = np.random.default_rng(0), SIZES[size]["image"], 2 * BATCH[size]
    contract = PolicyContract.load(default_policy() / "contract.json")
    contract = replace(contract, cameras=tuple(CameraSpec(name, image, image) for name in CAMERAS))
    action = contract.action
    FrameCache.from_arrays(
        images={name: rng.integers(0, 256, (count, image, image, 3), np.uint8) for name in CAMERAS},
        state=rng.uniform(-0.5, 0.5, (count, len(contract.state_names))).astype(np.float32),
        action=rng.uniform(action.low, action.high, (count, action.size)).astype(np.float32),
        points=rng.uniform(0, 1, (count, 3, 5)).astype(np.float32),
        instruction_id=np.zeros(count, np.int32),
        instructions=(INSTRUCTION,),
        episode_end=np.full(count, count, np.int64),
    ).save(folder / "data", contract)
    return contract


def make_policy(folder: Path, contract: "PolicyContract", device: str) -> "TorchPolicy":
    """With weights in bfloat16, as a policy whose backbone was frozen has them."""
    from volar.vla.network import make_network
    from volar.vla.processor_volar import TorchPolicy
    from volar.vla.train import TrainConfig

    frozen: dict[str, Any] = dict.fromkeys(PARTS, "frozen")
    config = TrainConfig(
        dataset=folder / "data",
        output=folder / "policy",
        steps=1,
        backbone=str(folder / "backbone"),
        backbone_dtype="bfloat16",
        **frozen,
    )
    network = make_network(config, contract, [], labels_hand=True)
    return TorchPolicy(network.model.to(device).eval(), network.contract, network.tokenizer)


def compiled(model: Any, device: Any, how: str) -> Any:
    """On a CPU traced and split only: C++ for a minute's compiler would say nothing about a GPU."""
    import torch

    torch._dynamo.reset()
    if device.type == "cpu":
        return torch.compile(model, backend="aot_eager")
    return torch.compile(model, mode="reduce-overhead" if how == "graphs" else "default")


def measure_inference(policy: "TorchPolicy", how: str, decisions: int) -> dict[str, Any]:
    """Latencies of `decisions` chunks, after some that do not count; the policy's network is then as it was."""

    from volar.robots.interface import Observation

    plain, rng, contract = policy.graph.model, np.random.default_rng(0), policy.contract
    if how != "eager":
        policy.graph.model = compiled(plain, policy.device, how)
    seen = [
        Observation(
            {c.name: rng.integers(0, 256, (c.height, c.width, 3), np.uint8) for c in contract.cameras},
            np.zeros(len(contract.state_names), np.float32),
            INSTRUCTION,
            0,
        )
        for _ in range(4)
    ]
    times = np.empty(WARM_UP + decisions)  # [s]; a chunk arrives on the CPU, so that nothing is left to wait for
    try:
        for i in range(len(times)):
            start = time.perf_counter()
            policy.predict(seen[i % len(seen)])
            times[i] = time.perf_counter() - start
    finally:
        policy.graph.model = plain
    p50, p99 = 1e3 * np.percentile(times[WARM_UP:], [50, 99])
    return {"p50_ms": float(p50), "p99_ms": float(p99), "decisions": decisions, "first_s": float(times[0])}


def start_training(size: str, folder: Path, frozen: Sequence[str]) -> "TrainingRun":
    """A run of which a step fits into memory. Raises `MemoryError` when none does."""
    import gc

    import torch

    from volar.vla.train import TrainConfig
    from volar.vla.training_loop import out_of_memory
    from volar.vla.training_run import TrainingRun

    how: dict[str, Any] = dict.fromkeys(frozen, "frozen")
    for batch, twice in ((BATCH[size], False), (BATCH[size], True), (max(1, BATCH[size] // 4), True)):
        config = TrainConfig(
            dataset=folder / "data",
            output=folder / "run",
            backbone=str(folder / "backbone"),
            batch_size=batch,
            precision="bf16",
            gradient_checkpointing=twice,
            steps=1_000_000,
            **how,
        )
        try:
            training = TrainingRun.start(config)
            training.train_step(LEARNING_RATE)
            return training
        except Exception as error:
            if not out_of_memory(error):
                raise
        training = None  # type: ignore[assignment]
        gc.collect()
        torch.cuda.empty_cache()
    raise MemoryError(f"not even a batch of {batch} with gradient checkpointing fits")


def measure_training(training: "TrainingRun", how: str, peak: float | None, seconds: float) -> dict[str, Any]:
    """Of a window of steps, after some that do not count. `loading`: its share of a step."""
    import torch

    on_gpu = training.processes.device.type == "cuda"
    if how != "eager":
        training.model = compiled(training.bare, training.processes.device, how)
    start = time.perf_counter()
    for _ in range(2):
        training.train_step(LEARNING_RATE)
    first_s, start, steps = time.perf_counter() - start, time.perf_counter(), 0
    while steps < STEPS or time.perf_counter() - start < seconds:
        training.train_step(LEARNING_RATE)  # which waits for the norm of its gradient
        steps += 1
    if on_gpu:
        torch.cuda.synchronize()
    step_s = (time.perf_counter() - start) / steps
    if not np.isfinite(training.gradient_norm):
        raise ArithmeticError(f"the gradient's norm became {training.gradient_norm}, and steps were left out")
    start = time.perf_counter()
    sample = training.batch(training.step)
    loading = (time.perf_counter() - start) / step_s
    words = training.bare.backbone.without_padding(sample["input_ids"]).shape[1]
    rate, flop = training.config.batch_size / step_s, FLOP["sample_flop"](training.bare, words)
    return {
        "batch": training.config.batch_size,
        "gradient_checkpointing": training.config.gradient_checkpointing,
        "samples_per_s": rate,
        "loading": loading,
        "gflop_per_sample": flop / 1e9,
        "tflops": flop * rate / 1e12,
        "mfu": flop * rate / peak if peak else None,
        "memory_gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None,
        "first_s": first_s,
    }


def measure(size: str, frozen: Sequence[str], tiny: bool) -> None:
    """In this process: each measurement as it is done, a line of JSON."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    peak = FLOP["peak_flops"](torch.cuda.get_device_name()) if device == "cuda" else None
    decisions, seconds = (50, 0.0) if tiny else (DECISIONS, SECONDS)

    def tell(what: str, how: str, work: Callable[[], dict[str, Any]]) -> None:
        try:
            found = work()
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"}
        print(json.dumps({"size": size, "what": what, "how": how} | found), flush=True)

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        contract = write_inputs(size, folder, device)
        policy = make_policy(folder, contract, device)
        tell("inference", "eager", lambda: measure_inference(policy, "eager", decisions))
        runs: list[TrainingRun] = []

        def train(how: str) -> dict[str, Any]:
            if not runs:
                runs.append(start_training(size, folder, frozen))
            return measure_training(runs[0], how, peak, seconds)

        tell("training", "eager", lambda: train("eager"))
        tell("inference", "compiled", lambda: measure_inference(policy, "compiled", decisions))
        if device == "cuda":
            torch.cuda.empty_cache()
            tell("inference", "graphs", lambda: measure_inference(policy, "graphs", decisions))
        tell("training", "compiled", lambda: train("compiled"))


def lines_of(command: Sequence[str], size: str, limit_s: float, on_cpu: bool = False) -> Iterator[dict[str, Any]]:
    """What a process measures, as it does; at last why it ended, if it did not end well or in time."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if on_cpu:  # threads that wait for each other on a busy machine take most of the time
        environment["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True, env=environment
        )
        late = threading.Event()

        def end() -> None:
            late.set()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # compilers that it started, too

        timer = threading.Timer(limit_s, end)
        timer.start()
        assert process.stdout is not None
        try:
            yield from (json.loads(line) for line in process.stdout if line.startswith("{"))
            if process.wait() or late.is_set():
                errors.seek(0)
                said = [line for line in errors.read().splitlines() if line.strip()]
                why = f"took more than its {limit_s:.0f} s" if late.is_set() else (said or ["ended without a word"])[-1]
                yield {"size": size, "what": "process", "how": "", "error": why}
        finally:
            timer.cancel()
            end()


def print_table(rows: Sequence[dict[str, Any]], title: str) -> None:
    """A line for each size and way, of training and inference side by side; below it what failed."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for column in ("size", "", "batch", "samples/s", "loading", "TFLOP/s", "MFU", "GB", r"p50 \[ms]", r"p99 \[ms]"):
        table.add_column(column, justify="right" if column not in ("size", "") else "left", no_wrap=True)

    def cell(found: dict[str, Any], key: str, form: str) -> str:
        return "–" if found.get(key) is None else format(found[key], form)

    for size, how in dict.fromkeys((row["size"], row["how"]) for row in rows if row["how"]):
        of = {row["what"]: row for row in rows if (row["size"], row["how"]) == (size, how)}
        trained, asked = of.get("training", {}), of.get("inference", {})
        batch = cell(trained, "batch", "d") + (" twice" if trained.get("gradient_checkpointing") else "")
        forms = {"samples_per_s": ".1f", "loading": ".0%", "tflops": ".1f", "mfu": ".1%", "memory_gb": ".1f"}
        numbers = [cell(trained, key, form) for key, form in forms.items()]
        table.add_row(size, how, batch, *numbers, cell(asked, "p50_ms", ".1f"), cell(asked, "p99_ms", ".1f"))
    console = Console(width=120)
    console.print(table)
    for row in rows:
        if "error" in row:
            console.print(f"{row['size']} {row['what']} {row['how']}: {row['error']}", soft_wrap=True, markup=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=tuple(BATCH), default=["500M", "2.2B"])
    parser.add_argument("--frozen", nargs="+", choices=PARTS, default=[], help="parts that do not train")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all sizes together")
    parser.add_argument("--output", type=Path, help="file to which the lines of JSON are added as well")
    parser.add_argument("--tiny", action="store_true", help="no published size, on whatever there is")
    parser.add_argument("--measure", choices=tuple(BATCH), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.frozen, options.tiny)
        return
    import torch

    if not torch.cuda.is_available() and not options.tiny:
        print("no GPU here; --tiny runs the whole path on the CPU")
        return
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    sizes = ["tiny"] if options.tiny else options.sizes
    end_s, rows = time.monotonic() + 60 * options.minutes, []
    for i, size in enumerate(sizes):
        command = [sys.executable, "-P", __file__, "--measure", size, *(["--tiny"] if options.tiny else [])]
        command += ["--frozen", *options.frozen] if options.frozen else []
        for row in lines_of(command, size, (end_s - time.monotonic()) / (len(sizes) - i), gpu == "CPU"):
            row |= {"gpu": gpu, "torch": torch.__version__, "frozen": options.frozen}
            rows.append(row)
            print(json.dumps(row), flush=True)
            if options.output:
                with options.output.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    frozen = f", {' and '.join(options.frozen)} frozen" if options.frozen else ""
    print_table(rows, f"SmolVLM2's dimensions, random weights, two cameras, {gpu}, torch {torch.__version__}{frozen}")


if __name__ == "__main__":
    main()
