"""What `benchmarks/vlm_gpu.py` counts and how it goes on where something fails; its figures need a GPU."""

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from volar.vla.train import TrainConfig
from volar.vla.training_run import TrainingRun

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FLOP: dict[str, Any] = runpy.run_path(str(BENCHMARKS / "vlm_flop.py"))
GPU: dict[str, Any] = runpy.run_path(str(BENCHMARKS / "vlm_gpu.py"))
RIGHT = 'print("noise"); print(\'{"size": "a", "what": "training", "how": "eager"}\', flush=True)'
BATCH = 2


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    GPU["write_inputs"]("tiny", folder, "cpu")
    return folder


@pytest.mark.parametrize("frozen", [(), ("vision",), ("vision", "connector"), ("vision", "connector", "language")])
def test_the_flop_of_a_training_step_are_those_that_torch_counts(inputs: Path, frozen: tuple[str, ...]) -> None:
    how: dict[str, Any] = dict.fromkeys(frozen, "frozen")
    training = TrainingRun.start(
        TrainConfig(
            dataset=inputs / "data",
            output=inputs / "run",
            backbone=str(inputs / "backbone"),
            batch_size=BATCH,
            precision="fp32",
            steps=1,
            **how,
        )
    )
    for model in (training.bare.backbone.model.model.vision_model, training.bare.backbone.language_model):
        model.set_attn_implementation("eager")  # plain products: the counter knows no fused attention of a CPU
    sample = training.on_device(training.batch(0))
    with FlopCounterMode(display=False) as counter:
        training.train_step(1e-4)
    counted = FLOP["sample_flop"](training.bare, sample["input_ids"].shape[1])
    assert counted == pytest.approx(counter.get_total_flops() / BATCH, rel=0.05)


@pytest.mark.parametrize(
    ("gpu", "peak"),
    [("NVIDIA H200", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 80GB HBM3", 989e12), ("Some GPU", None)],
)
def test_a_gpu_that_is_not_known_has_no_peak(gpu: str, peak: float | None) -> None:
    assert FLOP["peak_flops"](gpu) == peak


@pytest.mark.parametrize(
    ("then", "limit_s", "why"),
    [
        ("raise ValueError('broken')", 60.0, "ValueError: broken"),
        ("import os; os._exit(9)", 60.0, "ended without a word"),
        ("import time; time.sleep(600)", 3.0, "took more than its 3 s"),
    ],
)
def test_what_was_measured_before_a_process_failed_is_kept(then: str, limit_s: float, why: str) -> None:
    first, last = GPU["lines_of"]([sys.executable, "-c", f"{RIGHT}\n{then}"], "a", limit_s)
    assert first == {"size": "a", "what": "training", "how": "eager"}
    assert last == {"size": "a", "what": "process", "how": "", "error": why}


def test_a_process_that_ends_well_says_nothing_more() -> None:
    assert [row["what"] for row in GPU["lines_of"]([sys.executable, "-c", RIGHT], "a", 60.0)] == ["training"]


def test_the_table_has_a_line_for_each_way_and_says_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"size": "a", "what": "training", "how": "eager", "batch": 8, "gradient_checkpointing": True, "mfu": 0.345},
        {"size": "a", "what": "inference", "how": "eager", "p50_ms": 12.34, "p99_ms": 56.78},
        {"size": "a", "what": "inference", "how": "compiled", "error": "Oops: [no] compiler"},
        {"size": "b", "what": "process", "how": "", "error": "killed"},
    ]
    GPU["print_table"](rows, "title")
    lines = capsys.readouterr().out.splitlines()
    (eager,) = (line for line in lines if "eager" in line)
    for text in ("8 twice", "34.5%", "12.3", "56.8"):
        assert text in eager
    assert "p50 [ms]" in "".join(lines)
    assert {"a inference compiled: Oops: [no] compiler", "b process : killed"} <= set(lines)
