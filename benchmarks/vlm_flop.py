"""Model FLOP of training a policy around SmolVLM2, for the MFU that `vlm_gpu.py` prints. Nothing to run.

MFU (Chowdhery et al., "PaLM", 2022, appendix B) = FLOP of a sample x samples/s / the GPU's dense bf16 peak. Of a stack
of layers with N multiplied weights (embeddings are looked up), D tokens, and L layers of attention of width W,

    forward    2 N D + 4 L W D^2    scores and sums of every pair of tokens, masked or not
    backward   2 N D                gradient of its inputs, where anything up to there trains: always in the language
                                    model, whose prompt holds queries that do
               2 N D                gradient of its weights, where they train
               8 L W D^2            where gradients flow through it

so 6 N D of what trains, 4 N D of a frozen language model and 2 N D of a frozen vision tower. What gradient
checkpointing computes twice counts once.
"""

from typing import TYPE_CHECKING, Any

from torch import nn

from volar.vla.adapters import PARTS, is_frozen, part_of

if TYPE_CHECKING:
    from volar.vla.modeling_volar import VolarModel

# [TFLOP/s], dense, of NVIDIA's data sheets; the first name that a GPU's contains.
PEAKS = {
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H200": 989,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "RTX 4090": 165,
}


def peak_flops(gpu: str) -> float | None:
    """Multiplications and additions a second in bf16 that a GPU of that name can do at most; None if unknown."""
    return next((1e12 * peak for name, peak in PEAKS.items() if name in gpu), None)


def sample_flop(model: "VolarModel", words: int) -> float:
    """Of training on one sample, with decoder parallel. `words`: tokens of its instruction."""
    config, backbone = model.config, model.backbone
    vision, text = backbone.model.config.vision_config, backbone.model.config.get_text_config()
    patches = (vision.image_size // vision.patch_size) ** 2
    seen, cameras = sum(side**2 for side in config.camera_tokens), len(config.camera_tokens)
    around = [len(getattr(config.backbone, name)) for name in ("head", "image_start", "image_end")]
    points, steps = len(model.point_queries), model.action_shape[0]
    length = around[0] + cameras * sum(around[1:]) + seen + words + 1 + points + steps  # 1: proprioception
    trains = {part: not is_frozen(backbone, part) for part in PARTS}
    of = part_weights(model)
    point = model.point_head
    heads = weights(point.query) * points + weights(point.key) * config.camera_tokens[0] ** 2
    heads += weights(point.regress) * 2 + (weights(point.find_hand) if point.hand else 0)
    heads += weights(model.action_head) * steps + weights(model.state_projection)
    return (
        cameras * stack_flop(of["vision"], patches, vision, trains["vision"], trains["vision"])
        + 2 * of["connector"] * seen * (1 + trains["vision"] + trains["connector"])
        + stack_flop(of["language"], length, text, True, trains["language"])
        + 6 * heads
    )


def stack_flop(weights: int, tokens: int, config: Any, flows: bool, trained: bool) -> float:
    """Of one sequence through a stack of `config`. `flows`: gradients pass through it; `trained`: its weights do."""
    attention = 4 * config.num_hidden_layers * config.hidden_size * tokens**2
    return 2 * weights * tokens * (1 + flows + trained) + attention * (3 if flows else 1)


def weights(module: Any) -> int:
    """That are multiplied with each token."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d)))


def part_weights(model: "VolarModel") -> dict[str, int]:
    """`weights` of each of `PARTS`; the head that says words is not asked."""
    found = dict[str, int](dict.fromkeys(PARTS, 0))
    for name, module in model.backbone.model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and name != "lm_head":
            found[part_of(model.backbone, name)] += module.weight.numel()
    return found
