"""Every family: our path through a model gives the hidden states that the model's own forward pass gives."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from volar.robots.errors import Unknown, VolarError
from volar.vla.attention import attention_mask
from volar.vla.backbone import Backbone, Piece, VlmConfig, build_backbone
from volar.vla.families import FAMILIES

from .tiny_vlms import ARCHITECTURES, IMAGE_ID, tiny_model

NAMES = sorted(ARCHITECTURES)
SIZE, END = 32, 25


def config_of(model: Any) -> VlmConfig:
    architecture = json.loads(model.config.to_json_string(use_diff=False))
    return VlmConfig(model.config.model_type, architecture, SIZE)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: tiny_model(name) for name in NAMES}


def pixels(batch: int) -> Tensor:
    return torch.rand(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def prompt(backbone: Backbone, before: Tensor, after: Tensor, cameras: int) -> list[Piece]:
    """`before`, that many different images with a token after each, `after`; as a policy puts a prompt together."""
    batch = len(before)
    images = [backbone.embed_images(pixels(batch) * scale) for scale in (1.0, -0.5)[:cameras]]
    side = backbone.family.side(backbone.model.config, SIZE)
    shown = [
        Piece(image[0], torch.ones(image[0].shape[:2], dtype=torch.bool), side, tuple(image[1:])) for image in images
    ]
    words = [Piece(backbone.embed_words(ids), backbone.present(ids)) for ids in (before, after)]
    end = Piece(backbone.embed_words(torch.full((batch, 1), END)), torch.ones(batch, 1, dtype=torch.bool))
    return [words[0], *(piece for image in shown for piece in (image, end)), words[1]]


def own_forward(name: str, model: Any, ids: Tensor, images: Tensor) -> Tensor:
    """Last hidden states of the model's own forward, with placeholders in `ids`; images (B, C, 3, S, S)."""
    extra: dict[str, Any] = {}
    values = images
    if name.startswith("qwen"):
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

        vision = model.config.vision_config
        processor = Qwen2VLImageProcessor(
            patch_size=vision.patch_size,
            merge_size=vision.spatial_merge_size,
            temporal_patch_size=vision.temporal_patch_size,
            do_resize=False,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
            do_rescale=False,
        )
        seen = processor(list(images.flatten(0, 1) / 2 + 0.5), return_tensors="pt")
        values = seen["pixel_values"]
        extra = {"image_grid_thw": seen["image_grid_thw"], "mm_token_type_ids": (ids == IMAGE_ID).int()}
    elif name.startswith(("llava", "paligemma", "internvl")):
        values = images.flatten(0, 1)
    if name.startswith("paligemma"):
        extra = {"token_type_ids": torch.zeros_like(ids)}  # all of it is prefix
    with torch.inference_mode():
        hidden: Tensor = model.model(input_ids=ids, pixel_values=values, **extra).last_hidden_state
    return hidden


@pytest.mark.parametrize("cameras", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_hidden_states_are_the_models_own(name: str, cameras: int, models: dict[str, Any]) -> None:
    model = models[name]
    backbone = Backbone(model, config_of(model))
    before, after = torch.tensor([[1, 20, 21]] * 2), torch.tensor([[30, 31, 32, 33], [40, 41, 42, 43]])
    with torch.inference_mode():
        pieces = prompt(backbone, before, after, cameras)
        sequence = backbone.arrange(pieces)
        mask = attention_mask(sequence.present, sequence.length, causal=not backbone.family.bidirectional)
        found = backbone.hidden_states(sequence.embeddings, mask, sequence.positions, sequence.deep)
    tokens = pieces[1].embeddings.shape[1]
    shown_as = torch.cat([torch.full((2, tokens), IMAGE_ID), torch.full((2, 1), END)], 1)
    ids = torch.cat([before, *[shown_as] * cameras, after], 1)
    shown = torch.stack([pixels(2) * scale for scale in (1.0, -0.5)[:cameras]], 1)
    wanted = own_forward(name, model, ids, shown)
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_present_changes_nothing(name: str, models: dict[str, Any]) -> None:
    """A prompt with padding, and without a camera, is that prompt without either: same states, same positions."""
    backbone = Backbone(models[name], config_of(models[name]))
    before, after = torch.tensor([[1, 20, 21]]), torch.tensor([[30, 31, 32, 33]])
    with torch.inference_mode():
        short = backbone.arrange(prompt(backbone, before, after, 1))
        padded = prompt(backbone, before, torch.tensor([[30, 31, 32, 33, -1, -1]]), 2)
        for i in (3, 4):  # the second image and the token after it
            padded[i] = replace(padded[i], present=torch.zeros_like(padded[i].present))
        long = backbone.arrange(padded)
        states = [
            backbone.hidden_states(s.embeddings, attention_mask(s.present, s.length, causal=True), s.positions, s.deep)[
                s.present
            ]
            for s in (short, long)
        ]
    assert long.length > short.length
    assert torch.equal(short.next_position, long.next_position)
    torch.testing.assert_close(states[0], states[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_cache_changes_nothing(name: str, models: dict[str, Any]) -> None:
    backbone = Backbone(models[name], config_of(models[name]))
    pieces = prompt(backbone, torch.tensor([[1, 20]]), torch.tensor([[30, 31, 32, 33]]), 1)
    with torch.inference_mode():
        whole = backbone.arrange(pieces)
        mask = attention_mask(whole.present, whole.length, causal=True)
        wanted = backbone.hidden_states(whole.embeddings, mask, whole.positions, whole.deep)[:, -4:]
        first = backbone.arrange(pieces[:-1])
        rest = backbone.arrange(pieces[-1:], first.next_position)
        cache = backbone.new_cache()
        seen = first.length
        backbone.hidden_states(first.embeddings, mask[:, :seen, :seen], first.positions, first.deep, cache)
        found = backbone.hidden_states(rest.embeddings, mask[:, seen:], rest.positions, rest.deep, cache)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_architecture_is_complete(name: str, models: dict[str, Any]) -> None:
    """From the configuration in a policy directory alone, the same network: it takes the same weights."""
    config = config_of(models[name])
    again = build_backbone(VlmConfig(**json.loads(json.dumps(config.__dict__))), 0)
    again.model.load_state_dict(models[name].state_dict())
    ids = torch.tensor([[9, 20, 30]])
    with torch.inference_mode():
        a, b = (m.embed_images(pixels(1))[0] for m in (again.eval(), Backbone(models[name], config)))
        assert torch.equal(a, b)
        assert torch.equal(again.embed_words(ids), Backbone(models[name], config).embed_words(ids))


def test_sizes_that_do_not_fit_are_named(models: dict[str, Any]) -> None:
    wrong = {"llava": "takes 32 only", "smolvlm": "not a multiple of 16", "qwen3_vl": "not a multiple of 16"}
    for name, message in wrong.items():
        with pytest.raises(ValueError, match=message):
            FAMILIES[name].side(models[name].config, 24)
    with pytest.raises(ValueError, match="above 32"):
        FAMILIES["smolvlm"].side(models["smolvlm"].config, 64)


def test_an_unknown_family_names_the_choices() -> None:
    with pytest.raises(Unknown, match="smolvlm"):
        VlmConfig("smolvml", {}, 32)
    with pytest.raises(VolarError, match="bfloat16"):
        VlmConfig("smolvlm", {}, 32, dtype="bf16")
