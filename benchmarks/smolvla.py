"""Training of a SmolVLA: LeRobot's own policy and trainer, and `volar-train` with decoder flow, in turn in one run.

    python -P benchmarks/smolvla.py [--size 500M] [--precision fp32] [--trains expert] [--batch 4] [--steps 4]

Both train on the same demonstrations (two cameras, collected first, or `--dataset`), around the same SmolVLM2 of
random weights, with an action expert of the same width, chunks of 50 and the same number of threads: `lerobot-train`'s
and `volar-train`'s own functions, each in a process of its own, with a stopwatch around the step and nothing else
changed. The processes take turns, a window of steps each, after steps that do not count. What cannot be made equal is
printed below the table. `--trains expert`: the vision-language model is frozen, as SmolVLA's preset has it; `all`: it
trains, too. `--precision bf16`: autocast in both, and a frozen model's weights in bfloat16.

No Hub is needed: the folder that `vlm_model_name` names is written here. LeRobot asks its processor for two token ids
only; the folder therefore names Idefics3's processor (the same tokens), which needs no `num2words`.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

# Of SmolVLM2's published config.json files: the language model's hidden size, heads, key-value heads, inner size; the
# vision tower's hidden size, layers, heads; pixels of an image. Layers: those that SmolVLA keeps of them.
SIZES: dict[str, dict[str, int]] = {
    "500M": {"width": 960, "layers": 16, "heads": 15, "kv": 5, "inner": 2560, "seen": 768, "deep": 12, "image": 512},
    "256M": {"width": 576, "layers": 16, "heads": 9, "kv": 3, "inner": 1536, "seen": 768, "deep": 12, "image": 512},
    "small": {"width": 384, "layers": 6, "heads": 6, "kv": 2, "inner": 1024, "seen": 384, "deep": 6, "image": 256},
}
MARKERS = ("<|im_start|>", "<|im_end|>", "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
VOCABULARY, IMAGE_ID = 49280, 49190
CHUNK = 50  # SmolVLA's
EXPERT = 0.75  # its expert's width, of the language model's
LEARNING_RATE, STEPS = 1e-4, 30_000  # its preset's; the run ends long before
ANSWER = "MEASURED "  # begins the line of a window


def write_backbone(size: str, folder: Path) -> None:
    """A SmolVLM2 of random weights as `save_pretrained` leaves one, with a tokenizer that knows a few words."""
    import torch
    from transformers import (
        Idefics3ImageProcessor,
        Idefics3Processor,
        PreTrainedTokenizerFast,
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
    )

    s = SIZES[size]
    vision = {"hidden_size": s["seen"], "intermediate_size": 4 * s["seen"], "num_hidden_layers": s["deep"]}
    text = {
        "model_type": "llama",
        "hidden_size": s["width"],
        "num_hidden_layers": s["layers"],
        "num_attention_heads": s["heads"],
        "num_key_value_heads": s["kv"],
        "intermediate_size": s["inner"],
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 8192,
        "rope_theta": 100000.0,
    }
    torch.manual_seed(0)
    config = SmolVLMConfig(
        vision_config=vision | {"num_attention_heads": s["seen"] // 64, "image_size": s["image"], "patch_size": 16},
        text_config=text,
        scale_factor=4,
        image_token_id=IMAGE_ID,
    )
    SmolVLMForConditionalGeneration(config).save_pretrained(folder)
    named = {"fake_image_token": MARKERS[3], "global_image_token": MARKERS[4]}  # what SmolVLA asks it for
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_tokenizer(), pad_token=MARKERS[1], extra_special_tokens=named)
    Idefics3Processor(Idefics3ImageProcessor(), tokenizer, image_seq_len=64).save_pretrained(folder)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(MARKERS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["lift the red block and place it on the blue plate, User: Assistant:"] * 4, trainer)
    return tokenizer


class Stopwatch:
    """Around a trainer's step. Before a step it answers for the window that is over, and waits for a line that says of
    how many steps the next is; the trainer ends with its standard input.

    `model`, `layer`: of the arguments of a step, the policy, and the MLP of its language model's first layer.
    """

    def __init__(self, model: Callable[..., Any], layer: Callable[[Any], Any]) -> None:
        self._model, self._layer = model, layer
        self._left, self._found = 0, dict[str, Any]()
        self._start, self._used, self._inside, self._loading = 0.0, 0.0, 0.0, 0.0

    def around(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            if not self._left:
                self._next_window(self._model(*given, **named))
            start = time.perf_counter()
            result = step(*given, **named)
            self._inside += time.perf_counter() - start
            self._left -= 1
            return result

        return timed

    def around_loading(self, load: Callable[..., Any]) -> Callable[..., Any]:
        """Where a trainer's step loads its samples itself."""

        def timed(*given: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = load(*given, **named)
            self._loading += time.perf_counter() - start
            return result

        return timed

    def _next_window(self, model: Any) -> None:
        total = time.perf_counter() - self._start
        if not self._found:  # before the first step
            self._found = {
                "parameters": sum(p.numel() for p in model.parameters()),
                "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
            }
            self._layer(model).register_forward_hook(self._see)
        else:
            loading = total - self._inside + self._loading
            used = processor_s() - self._used
            self._found |= {"seconds": total, "loading_s": loading, "processor_s": used} | memory()
        print(ANSWER + json.dumps(self._found), flush=True)
        line = sys.stdin.readline()
        if not line:
            raise SystemExit(0)
        self._left = int(line)
        if "seconds" in self._found:  # what starting and the first steps took is told
            Path("/proc/self/clear_refs").write_text("5")
        self._start, self._used, self._inside, self._loading = time.perf_counter(), processor_s(), 0.0, 0.0

    def _see(self, layer: Any, given: tuple[Any, ...], result: Any) -> None:
        self._found["prefix_tokens"] = given[0].shape[1]


def children() -> list[Path]:
    """In /proc, of this process."""
    return [Path("/proc", pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def processor_s() -> float:
    """What this process and its children have computed [s]: unlike time, about the same on a busy machine."""
    ticks = [(child / "stat").read_text().rpartition(")")[2].split()[11:13] for child in children()]
    return time.process_time() + sum(int(tick) for pair in ticks for tick in pair) / os.sysconf("SC_CLK_TCK")


def memory() -> dict[str, int]:
    """[KiB]: this process's largest resident set since that was last cleared; its children's now, what several of them
    share counted once."""
    lines = [line for child in children() for line in (child / "smaps_rollup").read_text().splitlines()]
    return {
        "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "loaders_kib": sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")),
    }


def lerobot(options: argparse.Namespace, folder: Path) -> None:
    """`lerobot-train --policy.type=smolvla`, from its configuration on."""
    from lerobot.configs.default import DatasetConfig
    from lerobot.configs.train import TrainPipelineConfig
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.scripts import lerobot_train

    size, only, half = SIZES[options.size], options.trains == "expert", options.precision == "bf16"
    policy = SmolVLAConfig(
        device="cpu",
        use_amp=half,
        push_to_hub=False,
        vlm_model_name=str(folder / "backbone"),
        load_vlm_weights=half and only,  # those it loads are bfloat16, those it makes float32
        num_vlm_layers=size["layers"],
        expert_width_multiplier=EXPERT,
        resize_imgs_with_padding=(size["image"], size["image"]),
        chunk_size=CHUNK,
        n_action_steps=CHUNK,
        train_expert_only=only,
        freeze_vision_encoder=only,
    )
    config = TrainPipelineConfig(
        dataset=DatasetConfig(repo_id="volar/benchmark", root=str(options.dataset)),
        policy=policy,
        output_dir=folder / "lerobot",
        batch_size=options.batch,
        steps=STEPS,
        env_eval_freq=0,
    )
    watch = Stopwatch(
        lambda metrics, policy, *rest, **named: policy,
        lambda policy: policy.model.vlm_with_expert.get_vlm_model().text_model.layers[0].mlp,
    )
    lerobot_train.update_policy = watch.around(lerobot_train.update_policy)
    lerobot_train.train(config)


def volar(options: argparse.Namespace, folder: Path) -> None:
    """`volar-train decoder=flow`, from its configuration on."""
    from volar.vla.train import TrainConfig, train
    from volar.vla.training_run import TrainingRun

    only, half = options.trains == "expert", options.precision == "bf16"
    how = "frozen" if only else "full"
    config = TrainConfig(
        dataset=options.dataset,
        output=folder / "volar",
        backbone=str(folder / "backbone"),
        backbone_dtype="bfloat16" if half and only else "float32",
        vision=how,
        connector=how,
        language=how,
        decoder="flow",
        expert_width=int(EXPERT * SIZES[options.size]["width"]),
        chunk_length=CHUNK,
        batch_size=options.batch,
        learning_rate=LEARNING_RATE,
        precision=options.precision,
        threads=options.threads,
        steps=STEPS,
        save_every_steps=STEPS,
    )
    watch = Stopwatch(lambda training, *rest: training.bare, lambda bare: bare.backbone.language_model.layers[0].mlp)
    TrainingRun.train_step = watch.around(TrainingRun.train_step)  # type: ignore[method-assign]
    TrainingRun.batch = watch.around_loading(TrainingRun.batch)  # type: ignore[method-assign]
    train(config)


TRAINERS = {"LeRobot, SmolVLA": lerobot, "Volar, flow": volar}
UNEQUAL = (
    "The prefix: Volar puts SmolVLM's own markers around images and the instruction, and queries to point.",
    "The expert: SmolVLA's attends to the prefix in every second layer and to prefix and chunk in the others, with a "
    "gated MLP; Volar's attends to both in all, with a plain one.",
    "SmolVLA pads states and actions to 32 numbers; Volar takes as many as there are.",
    "Volar also learns to point (a head on the prefix's last hidden states) and averages what it trains.",
    "Of the language model, `all` leaves the last layer frozen in SmolVLA, and nothing in Volar.",
    "LeRobot loads with its default of 4 processes; Volar in the step, from frames decoded once.",
    "Each has its own AdamW, schedule and use of threads (Volar's sleep while they wait).",
)


class Child:
    """A trainer in its own process, which trains when asked."""

    def __init__(self, name: str, options: argparse.Namespace, folder: Path) -> None:
        self.name, self._errors = name, folder / f"{TRAINERS[name].__name__}.log"
        command = [sys.executable, "-P", __file__, *sys.argv[1:], "--dataset", str(options.dataset)]
        threads = {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [*command, "--trainer", name, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors.open("w"),
            text=True,
            env={**os.environ, **threads},
            start_new_session=True,
        )
        self.windows = [self._answer()]  # what there is before the first step

    def train(self, steps: int) -> None:
        """A window. Outside of them everything stands still, loading processes too: they would compute at the other
        trainer's expense."""
        assert self._process.stdin is not None
        os.killpg(self._process.pid, signal.SIGCONT)
        print(steps, file=self._process.stdin, flush=True)
        self.windows.append(self._answer())
        os.killpg(self._process.pid, signal.SIGSTOP)

    def end(self) -> None:
        os.killpg(self._process.pid, signal.SIGCONT)
        self._process.communicate()

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                found: dict[str, Any] = json.loads(line.removeprefix(ANSWER))
                return found
        raise SystemExit(f"{self.name} ended:\n{self._errors.read_text()[-3000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="500M")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--trains", choices=("expert", "all"), default="expert")
    parser.add_argument("--dataset", type=Path, help="a LeRobotDataset v3 of volar-collect or volar-convert")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4, help="of a window")
    parser.add_argument("--rounds", type=int, default=3, help="windows of each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trainer", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.trainer:
        name, place = options.trainer
        TRAINERS[name](options, Path(place))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))


def compare(options: argparse.Namespace, folder: Path) -> None:
    write_backbone(options.size, folder / "backbone")
    if options.dataset is None:
        options.dataset = folder / "demonstrations"
        collect = Path(sys.executable).with_name("volar-collect")
        settings = ("tasks=lift,place_on", "episodes=20", "image_size=256", "seed=0", f"output={options.dataset}")
        subprocess.run([collect, *settings], check=True, stdout=subprocess.DEVNULL)
    children: list[Child] = []
    try:
        for name in TRAINERS:
            children.append(Child(name, options, folder))
            children[-1].train(2)  # memory is taken, kernels chosen, loaders started
        for _ in range(options.rounds):
            for child in children:
                child.train(options.steps)
        for child in children:
            child.end()
    finally:
        for child in children:
            child.kill()
    show(options, children)


def figures(child: Child, samples: int) -> dict[str, float]:
    """Of the windows that count, of so many samples each: medians, and the largest memory."""
    warm_up, *counted = child.windows[1:]
    seconds = [window["seconds"] for window in counted]
    peak = max(window["peak_kib"] for window in counted)
    return {
        "parameters [M]": warm_up["parameters"] / 1e6,
        "of which train [M]": warm_up["trained"] / 1e6,
        "tokens of the prefix": counted[-1]["prefix_tokens"],
        "samples/s": samples / median(seconds),
        "least": samples / max(seconds),
        "most": samples / min(seconds),
        "processor seconds a sample": median(window["processor_s"] for window in counted) / samples,
        "of the time, waiting for data [%]": 100 * sum(window["loading_s"] for window in counted) / sum(seconds),
        "peak memory while training [GB]": peak * 1024 / 1e9,
        "peak memory, starting included [GB]": max(peak, warm_up["peak_kib"]) * 1024 / 1e9,
        "of its loading processes [GB]": counted[-1]["loaders_kib"] * 1024 / 1e9,
    }


def show(options: argparse.Namespace, children: list[Child]) -> None:
    from rich.console import Console
    from rich.table import Table

    found = {child.name: figures(child, options.batch * options.steps) for child in children}
    theirs, ours = found.values()
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    what = f"SmolVLM2-{options.size}, {options.precision}, trains: {options.trains}, batches of {options.batch}"
    table = Table(*("", *found, "Volar's of LeRobot's"), title=f"{what}, {options.threads} threads, load {load}")
    for column in table.columns[1:]:
        column.justify = "right"
    for name in theirs:
        ratio = f"{ours[name] / theirs[name]:.2f}" if theirs[name] and ours[name] else ""
        table.add_row(name, f"{theirs[name]:.3g}", f"{ours[name]:.3g}", ratio)
    Console(width=110).print(table)
    print("Not equal:", *UNEQUAL, sep="\n  ")
    print(json.dumps({"settings": vars(options) | {"dataset": str(options.dataset)}, "found": found}))


if __name__ == "__main__":
    main()
