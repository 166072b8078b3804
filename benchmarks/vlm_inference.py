"""Time of one answer of a policy with a pretrained-size backbone, against `transformers`' own `generate`.

    python -P benchmarks/vlm_inference.py [--size 256M] [--rounds 5] [--threads 2]

Random weights in the dimensions of SmolVLM2, one image (of 512 x 512; 384 x 384 for 2.2B). `generate`: prefill of the
image and the instruction, and seven tokens, as eager float32 of `transformers`. Ours: the same backbone as a policy of
this package, seven numbers token by token or a chunk of 8 x 7 at once, from the checkpoint and the exported artifact.
All are asked in turn, round by round, one process at a time, so that a busy machine is busy for all.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

# Of the published config.json: the language model's hidden size, layers, heads, key-value heads, inner size; the vision
# tower's hidden size, layers, heads, inner size; pixels of an image and of a patch; patches to a token, along a side.
_BASE = {"seen": 768, "deep": 12, "eyes": 12, "seen_inner": 3072, "image": 512, "patch": 16, "scale": 4}
_LARGE = {"seen": 1152, "deep": 27, "eyes": 16, "seen_inner": 4304, "image": 384, "patch": 14, "scale": 3}
SIZES = {
    "256M": {"width": 576, "layers": 30, "heads": 9, "kv": 3, "inner": 1536} | _BASE,
    "500M": {"width": 960, "layers": 32, "heads": 15, "kv": 5, "inner": 2560} | _BASE,
    "2.2B": {"width": 2048, "layers": 24, "heads": 32, "kv": 32, "inner": 8192} | _LARGE,
    # of no published model: the whole path in a minute
    "tiny": {"width": 192, "layers": 2, "heads": 3, "kv": 1, "inner": 512}
    | {"seen": 128, "deep": 2, "eyes": 2, "seen_inner": 512, "image": 128, "patch": 16, "scale": 2},
}
TOKENS = 7  # of an action
PROMPT = 16  # words around the image


def smolvlm(size: str) -> Any:
    """A model of that size with random weights."""
    import torch
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    s = SIZES[size]
    vision = {
        "hidden_size": s["seen"],
        "intermediate_size": s["seen_inner"],
        "num_hidden_layers": s["deep"],
        "num_attention_heads": s["eyes"],
        "image_size": s["image"],
        "patch_size": s["patch"],
    }
    text = {
        "model_type": "llama",
        "hidden_size": s["width"],
        "num_hidden_layers": s["layers"],
        "num_attention_heads": s["heads"],
        "num_key_value_heads": s["kv"],
        "intermediate_size": s["inner"],
        "vocab_size": 49280,
        "max_position_embeddings": 8192,
        "rope_theta": 100000.0,
    }
    torch.manual_seed(0)
    config = SmolVLMConfig(
        vision_config=vision,
        text_config=text,
        scale_factor=s["scale"],
        image_token_id=49190,
        tie_word_embeddings=True,
    )
    return SmolVLMForConditionalGeneration(config).eval()


def generate(size: str, threads: int) -> Callable[[], object]:
    """`transformers`' eager generation: what a policy of action tokens costs without any work."""
    import torch

    torch.set_num_threads(threads)
    model = smolvlm(size)
    s = SIZES[size]
    seen = (s["image"] // s["patch"] // s["scale"]) ** 2  # tokens of the image
    ids = torch.randint(10, 1000, (1, seen + PROMPT), generator=torch.Generator().manual_seed(0))
    ids[:, :seen] = model.config.image_token_id
    pixels = torch.randn(1, 1, 3, s["image"], s["image"])
    asked: dict[str, Any] = {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids)}
    tokens = {"min_new_tokens": TOKENS, "max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}

    def ask() -> object:
        with torch.inference_mode():
            return model.generate(**asked, **tokens)

    return ask


def write_backbone(size: str, folder: Path) -> None:
    """The folder that `backbone=` takes: weights, and a tokenizer that knows a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    smolvlm(size).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(["lift the red block and put it on the blue plate"] * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    statistics = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics))


def write_policy(backbone: Path, image: int, decoder: str, chunk: int, folder: Path) -> None:
    """A policy directory around that backbone: the shipped policy's contract, with one camera of image x image."""
    from volar.robots.contract import CameraSpec, PolicyContract
    from volar.robots.policies import default_policy
    from volar.vla.network import make_network
    from volar.vla.processor_volar import save_policy
    from volar.vla.train import TrainConfig

    contract = PolicyContract.load(default_policy() / "contract.json")
    cameras = (CameraSpec("front", image, image),)
    contract = replace(contract, cameras=cameras, chunk_length=chunk, execute_steps=min(2, chunk))
    config = TrainConfig(dataset=Path(), output=Path("out"), steps=1, backbone=str(backbone), decoder=decoder)  # type: ignore[arg-type]
    network = make_network(config, contract, [])
    save_policy(folder, network.model, network.contract, network.tokenizer)


def ours(folder: Path, way: str, threads: int) -> Callable[[], object]:
    """The policy in `folder`, asked for a chunk: `eager`, or an `artifact`."""
    from volar.robots.interface import Observation, Policy

    policy: Policy
    if way == "artifact":
        from volar.robots.exported_policy import ExportedPolicy

        policy = ExportedPolicy(folder, threads=threads, verify=False)
    else:
        import torch

        from volar.vla.checkpoint_policy import load

        torch.set_num_threads(threads)
        policy = load(folder)
    rng, contract = np.random.default_rng(0), policy.contract
    seen = Observation(
        {c.name: rng.integers(0, 256, (c.height, c.width, 3), np.uint8) for c in contract.cameras},
        np.zeros(len(contract.state_names), np.float32),
        "lift the red block",
        0,
    )
    return lambda: policy.predict(seen)


def serve(ask: Callable[[], object]) -> None:
    """Answers each line on standard input with the time of one answer [ms]; the first warms up."""
    ask()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        ask()
        print(1e3 * (time.perf_counter() - start), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="256M")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        way, *folder = options.serve
        serve(
            generate(options.size, options.threads)
            if way == "generate"
            else ours(Path(folder[0]), way, options.threads)
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))


def prepare(options: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """Writes what is measured; the words for `--serve`, by name."""
    from volar.vla.export import ExportConfig, export

    write_backbone(options.size, folder / "backbone")
    found = {"transformers, eager fp32: generate, 7 tokens": ["generate"]}
    for decoder, chunk, what in (("autoregressive", 1, "7 tokens, one by one"), ("parallel", 8, "8 x 7 at once")):
        policy = folder / decoder
        write_policy(folder / "backbone", SIZES[options.size]["image"], decoder, chunk, policy)
        found[f"volar, eager fp32: {what}"] = ["eager", str(policy)]
        for precision in ("fp32", "int8"):
            artifact = folder / f"{decoder}-{precision}"
            try:
                export(ExportConfig(policy=policy, output=artifact, precision=precision))  # type: ignore[arg-type]
            except Exception as error:
                print(f"{what}, {precision}: not exported: {error}", file=sys.stderr)
                continue
            found[f"volar, artifact {precision}: {what}"] = ["artifact", str(artifact)]
    return found


def compare(options: argparse.Namespace, folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    ways = prepare(options, folder)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, words in ways.items():
            times[name].append(asked(words, options))
    base = float(np.median(next(iter(times.values()))))
    table = Table(title=f"SmolVLM2-{options.size} dimensions, random weights, {options.threads} threads")
    for column in ("", r"median \[ms]", "fastest", "slowest", "of generate"):
        table.add_column(column, justify="right" if column else "left")
    for name, found in times.items():
        median = float(np.median(found))
        cells = (median, min(found), max(found))
        table.add_row(name, *(f"{cell:.0f}" for cell in cells), f"{base / median:.2f}x faster")
    Console(width=110).print(table)
    print(json.dumps(times))


def asked(words: list[str], options: argparse.Namespace) -> float:
    """The median of three answers in a fresh process, after one that does not count [ms]."""
    command = [sys.executable, "-P", __file__, "--size", options.size, "--threads", str(options.threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(
        [*command, "--serve", *words],
        input="\n\n\n",
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return float(np.median([float(line) for line in done.stdout.split("ready")[-1].split()]))


if __name__ == "__main__":
    main()
