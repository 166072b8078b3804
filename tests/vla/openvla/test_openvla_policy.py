"""The tokens and actions are those of the published model, here rebuilt from parts that share nothing with ours:
transformers' own DINOv2, SigLIP and Llama with its `generate`."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from volar.robots.contract import ContractError
from volar.robots.fr3 import FR3
from volar.robots.interface import Observation
from volar.robots.policies import load_policy
from volar.robots.policy_process import PolicyProcess
from volar.vla.action_tokenizers.action_tokenizer import DecodeError
from volar.vla.openvla.checkpoint import Checkpoint
from volar.vla.openvla.convert import ConvertOpenVLAConfig, convert
from volar.vla.openvla.policy import OpenVLAPolicy, center_crop, load

MARGIN = 0.125  # of the best logit to the next: two steps of bfloat16 where logits are from 8 to 16, as they are here
Weights = Mapping[str, Tensor]


def below(weights: Weights, prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def renamed(own: Weights, blocks: str, attention: tuple[str, ...], norms: tuple[str, str]) -> dict[str, Tensor]:
    """timm's blocks under transformers' names; q, k and v of one matrix apart."""
    found = {}
    for key, value in own.items():
        if not key.startswith("blocks."):
            continue
        _, number, rest = key.split(".", 2)
        part, _, kind = rest.rpartition(".")
        base = f"{blocks}.{number}"
        if part == "attn.qkv":
            for name, piece in zip(attention, value.chunk(3), strict=False):
                found[f"{base}.{name}.{kind}"] = piece
        elif part == "attn.proj":
            found[f"{base}.{attention[3]}.{kind}"] = value
        elif part in ("norm1", "norm2"):
            found[f"{base}.{norms[part == 'norm2']}.{kind}"] = value
        elif part in ("ls1", "ls2"):
            found[f"{base}.layer_scale{part[-1]}.lambda1"] = value
        else:
            found[f"{base}.{part}.{kind}"] = value
    return found


def dino(own: Weights, pixels: Tensor) -> Tensor:
    """Patch tokens of the last but one block, by transformers."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    size = pixels.shape[-1]
    config = Dinov2WithRegistersConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=16, image_size=size, patch_size=14
    )
    model = Dinov2WithRegistersModel(config).to(pixels.dtype).eval()
    names = tuple(f"attention.{name}_proj" for name in "qkvo")
    state = renamed(own, "encoder.layer", names, ("norm1", "norm2"))
    positions = torch.cat([torch.zeros(1, 1, 32), own["pos_embed"]], 1)  # timm adds none to the class token
    state |= {
        "embeddings.cls_token": own["cls_token"],
        "embeddings.register_tokens": own["reg_token"],
        "embeddings.position_embeddings": positions,
        "embeddings.mask_token": torch.zeros(1, 32),
        "embeddings.patch_embeddings.projection.weight": own["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": own["patch_embed.proj.bias"],
        "layernorm.weight": own["norm.weight"],
        "layernorm.bias": own["norm.bias"],
    }
    model.load_state_dict(state)
    hidden = model(pixels, output_hidden_states=True).hidden_states
    return hidden[-2][:, 5:]  # type: ignore[no-any-return]  # behind the class token and four registers


def siglip(own: Weights, pixels: Tensor) -> Tensor:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=48,
        intermediate_size=100,
        num_hidden_layers=4,
        num_attention_heads=16,
        image_size=pixels.shape[-1],
        patch_size=14,
        hidden_act="gelu",  # timm's; the original has an approximation of it
    )
    model = SiglipVisionModel(config).to(pixels.dtype).eval()
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
    state = renamed(own, "encoder.layers", names, ("layer_norm1", "layer_norm2"))
    state |= {
        "embeddings.patch_embedding.weight": own["patch_embed.proj.weight"],
        "embeddings.patch_embedding.bias": own["patch_embed.proj.bias"],
        "embeddings.position_embedding.weight": own["pos_embed"][0],
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.startswith(("head.", "post_layernorm.")) for name in missing)
    hidden = model(pixels, output_hidden_states=True).hidden_states
    return hidden[-2]  # type: ignore[no-any-return]


@torch.inference_mode()
def reference(folder: Path, image: NDArray[np.uint8], instruction: str) -> tuple[Tensor, Any]:
    """What Llama is given before the action (1, T, D), and Llama, in the type of the stored weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    weights = {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
    config = json.loads((folder / "config.json").read_text())
    pixels = []
    for given in json.loads((folder / "preprocessor_config.json").read_text())["tvf_normalize_params"]:
        x = torch.tensor(image).float() / 255
        normalized = ((x - torch.tensor(given["mean"])) / torch.tensor(given["std"])).permute(2, 0, 1)[None]
        pixels.append(normalized.to(weights["projector.fc1.weight"].dtype))
    seen = torch.cat(
        [
            dino(below(weights, "vision_backbone.featurizer."), pixels[0]),
            siglip(below(weights, "vision_backbone.fused_featurizer."), pixels[1]),
        ],
        dim=2,
    )
    for name in ("fc1", "fc2", "fc3"):
        seen = F.linear(seen, weights[f"projector.{name}.weight"], weights[f"projector.{name}.bias"])
        seen = F.gelu(seen) if name != "fc3" else seen
    text = {k: v for k, v in config["text_config"].items() if k not in ("model_type", "torch_dtype")}
    llama = LlamaForCausalLM(LlamaConfig(**text)).to(seen.dtype).eval()
    llama.load_state_dict(below(weights, "language_model."))
    prompt = f"In: What action should the robot take to {instruction.lower()}?\nOut:"
    ids = [*Tokenizer.from_file(str(folder / "tokenizer.json")).encode(prompt).ids, 29871]
    words = llama.get_input_embeddings()(torch.tensor([ids]))
    return torch.cat([words[:, :1], seen, words[:, 1:]], dim=1), llama


@torch.inference_mode()
def published(folder: Path, key: str, image: NDArray[np.uint8], instruction: str) -> tuple[list[int], NDArray[Any]]:
    """Token ids and action as `predict_action(unnorm_key=key, do_sample=False)` computes them."""
    config = json.loads((folder / "config.json").read_text())
    embeddings, llama = reference(folder, image, instruction)
    mask = torch.ones(embeddings.shape[:2], dtype=torch.int64)
    out = llama.generate(
        inputs_embeds=embeddings, attention_mask=mask, max_new_tokens=7, do_sample=False, use_cache=False
    )
    tokens = out[0].numpy()
    bins = np.linspace(-1, 1, 256)
    centres = (bins[:-1] + bins[1:]) / 2
    vocabulary = config["text_config"]["vocab_size"] - config["pad_to_multiple_of"]
    normalized = centres[np.clip(vocabulary - tokens - 1, 0, 254)]
    stats = config["norm_stats"][key]["action"]
    high, low = np.array(stats["q99"]), np.array(stats["q01"])
    return tokens.tolist(), np.where(stats["mask"], 0.5 * (normalized + 1) * (high - low) + low, normalized)


def look(seed: int, instruction: str, size: int = 56) -> Observation:
    image = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    return Observation({"front": image}, np.zeros(len(FR3.state_names), np.float32), instruction, 7)


@pytest.fixture(scope="module")
def converted(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "policy"
    convert(ConvertOpenVLAConfig(pristine, folder, dataset="mine", robot="fr3"))
    return folder


@pytest.fixture(scope="module")
def policy(converted: Path) -> OpenVLAPolicy:
    return load(converted)


def test_tokens_and_actions_are_the_published_models(pristine: Path, policy: OpenVLAPolicy) -> None:
    distinct = set()
    for seed, instruction in enumerate(("lift the red block", "Put the BLUE cup on the plate", "open the drawer", "x")):
        observation = look(seed, instruction)
        image = observation.images["front"]
        tokens, action = published(pristine, "mine", image, instruction)
        assert policy._model.action_tokens(policy.pixels(image), policy.prompt_ids(instruction), 7) == tokens
        chunk = policy.predict(observation)
        assert (chunk.actions.shape, chunk.stamp_ns, chunk.dt_s) == ((1, 7), 7, 0.1)
        np.testing.assert_allclose(chunk.actions[0, :6], action[:6], atol=1e-7)
        np.testing.assert_allclose(chunk.actions[0, 6], np.clip(action[6], 0, 1), atol=1e-7)
        distinct.add(tuple(tokens))
    assert len(distinct) == 4  # image and instruction decide
    assert len({token for tokens in distinct for token in tokens}) > 4


def test_padding_and_truncation_of_training_do_not_hold(checkpoint: Path, policy: OpenVLAPolicy) -> None:
    path, instruction = checkpoint / "tokenizer.json", "lift the red block and put it on the plate"
    words = Tokenizer.from_file(str(path))
    words.enable_padding(length=200, pad_id=2, pad_token="</s>")
    words.enable_truncation(8)
    words.save(str(path))
    convert(ConvertOpenVLAConfig(checkpoint, checkpoint.parent / "out", dataset="mine", robot="fr3"))
    found = load(checkpoint.parent / "out")
    assert torch.equal(found.prompt_ids(instruction), policy.prompt_ids(instruction))
    observation = look(0, instruction)
    np.testing.assert_array_equal(found.predict(observation).actions, policy.predict(observation).actions)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_each_tower_is_transformers_own(pristine: Path, tensors: Weights, dtype: torch.dtype, error: float) -> None:
    """Two implementations of others agree with ours on the same weights."""
    model = Checkpoint.open(pristine).load(torch.device("cpu")).to(dtype)
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0)).to(dtype)
    for name, reference in (("featurizer", dino), ("fused_featurizer", siglip)):
        with torch.inference_mode():
            wanted = reference(below(tensors, f"vision_backbone.{name}."), pixels)
            found = model.vision_backbone[name](pixels)
        assert found.shape == wanted.shape
        assert found.dtype == wanted.dtype == dtype
        difference = torch.linalg.vector_norm((found - wanted).float()) / torch.linalg.vector_norm(wanted.float())
        assert difference < error


def test_the_last_block_changes_nothing(checkpoint: Path, policy: OpenVLAPolicy) -> None:
    unused = ("featurizer.norm.", "attn_pool", "backbone.featurizer.blocks.2.", "fused_featurizer.blocks.3.")
    spoilt = 0
    for file in checkpoint.glob("*.safetensors"):
        content = load_file(file)
        useless = [name for name in content if any(part in name for part in unused)]
        save_file(content | {name: torch.full_like(content[name], torch.nan) for name in useless}, file)
        spoilt += len(useless)
    assert spoilt == 2 * 2 + 2 + 14 + 12  # norms, pooling, and the blocks, one of them with layer scale
    convert(ConvertOpenVLAConfig(checkpoint, checkpoint.parent / "out", dataset="mine", robot="fr3"))
    observation = look(0, "lift the red block")
    found = load(checkpoint.parent / "out").predict(observation)
    np.testing.assert_array_equal(found.actions, policy.predict(observation).actions)


@pytest.fixture
def undecided(checkpoint: Path) -> Path:
    """A policy whose output is the same for every token, so that it predicts the first there is: no action."""
    for file in checkpoint.glob("*.safetensors"):
        content = load_file(file)
        if "language_model.lm_head.weight" in content:
            content["language_model.lm_head.weight"].zero_()
            save_file(content, file)
    convert(ConvertOpenVLAConfig(checkpoint, checkpoint.parent / "out", dataset="mine", robot="fr3"))
    return checkpoint.parent / "out"


NO_ACTION = "token 0 at place 0 is no action token (31744..31999)"


def test_tokens_that_are_no_action_break_an_episode(undecided: Path) -> None:
    """OpenVLA would take them for the nearest bin, and the arm would move at full speed."""
    from volar.sim.closed_loop import ClosedLoop

    with pytest.raises(DecodeError) as error:
        load(undecided).predict(look(0, "lift"))
    assert str(error.value) == NO_ACTION
    loop = ClosedLoop(load(undecided), "reach", max_steps=3)
    try:
        record = loop.run(seed=0)
    finally:
        loop.close()
    assert (record.broken, record.success) == (True, False)
    assert NO_ACTION in record.reason


@pytest.mark.real_time
def test_tokens_that_are_no_action_leave_the_arm_without_a_chunk(undecided: Path) -> None:
    """The process says why, gives nothing, and goes on: the next observation may be clearer."""
    with PolicyProcess(undecided) as process:
        for _ in range(2):
            process.submit(look(0, "lift"))
            deadline = time.monotonic() + 60
            while process.pending and time.monotonic() < deadline:
                assert process.poll(0) is None
                time.sleep(0.001)  # leaves the core to the other process; no result depends on it
            assert process.status.error == NO_ACTION
            assert (process.status.state, process.failure, process.restarts) == ("ready", None, 0)


def test_weights_stay_in_the_type_they_are_stored_in(checkpoint: Path) -> None:
    for file in checkpoint.glob("*.safetensors"):
        save_file({name: value.bfloat16() for name, value in load_file(file).items()}, file)
    convert(ConvertOpenVLAConfig(checkpoint, checkpoint.parent / "out", dataset="mine", robot="fr3"))
    policy = load(checkpoint.parent / "out")
    assert {value.dtype for value in policy._model.parameters()} == {torch.bfloat16}
    assert np.isfinite(policy.predict(look(0, "lift the red block")).actions).all()


def test_in_bfloat16_the_tokens_are_the_published_models_where_rounding_decides_none(checkpoint: Path) -> None:
    """As published checkpoints are stored. Each token is compared after those before it that ours said."""
    for file in checkpoint.glob("*.safetensors"):
        save_file({name: value.bfloat16() for name, value in load_file(file).items()}, file)
    convert(ConvertOpenVLAConfig(checkpoint, checkpoint.parent / "out", dataset="mine", robot="fr3"))
    policy, decided = load(checkpoint.parent / "out"), 0
    for seed in range(8):
        image = look(seed, "").images["front"]
        tokens = torch.tensor(policy._model.action_tokens(policy.pixels(image), policy.prompt_ids("lift"), 7))
        given, llama = reference(checkpoint, image, "lift")
        with torch.inference_mode():
            said = llama.get_input_embeddings()(tokens[None, :-1])
            logits = llama(inputs_embeds=torch.cat([given, said], 1)).logits[0, -7:].float()  # (7, ids)
        top = logits.topk(2).values
        sure = top[:, 0] - top[:, 1] > MARGIN
        assert torch.equal(logits.argmax(1)[sure], tokens[sure])
        decided += int(sure.sum())
    assert decided > 0.7 * 8 * 7


def test_another_image_is_refused(policy: OpenVLAPolicy) -> None:
    with pytest.raises(ContractError, match="56"):
        policy.predict(look(0, "lift", size=64))


def test_a_crop_is_part_of_the_contract_and_changes_what_is_seen(pristine: Path, tmp_path: Path) -> None:
    convert(ConvertOpenVLAConfig(pristine, tmp_path / "out", dataset="mine", robot="fr3", center_crop=0.9))
    policy = load(tmp_path / "out")
    assert policy.contract.preprocessing["openvla.center_crop"] == "0.9"
    image = look(0, "lift").images["front"]
    cropped = published(pristine, "mine", center_crop(image, 0.9), "lift")[0]
    assert policy._model.action_tokens(policy.pixels(image), policy.prompt_ids("lift"), 7) == cropped


def test_the_arm_moves_by_it_in_simulation(converted: Path) -> None:
    from volar.sim.closed_loop import ClosedLoop

    loop = ClosedLoop(load_policy(converted), "reach", max_steps=3)
    try:
        record = loop.run(seed=0)
    finally:
        loop.close()
    assert (record.steps, record.broken, record.reason) == (3, False, "")
    commands = np.array([command.q for command in loop.trace.commands])
    assert np.ptp(commands, axis=0).max() > 1e-3
