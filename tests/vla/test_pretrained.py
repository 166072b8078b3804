"""Pretrained backbones end to end: a folder, training of its parts, a policy that needs the folder no more."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from volar.robots.errors import Unknown, UsageError, VolarError
from volar.robots.exported_policy import ExportedPolicy
from volar.robots.interface import Observation, Policy
from volar.robots.tokenize_subwords import NO_TOKEN, SubwordTokenizer
from volar.robots.tokenize_words import TokenizerError
from volar.vla.adapters import merge, part_of
from volar.vla.checkpoint_policy import load, load_parts
from volar.vla.export import ExportConfig, export
from volar.vla.modeling_volar import Imitated
from volar.vla.pretrained import load_pretrained
from volar.vla.processor_volar import TorchPolicy
from volar.vla.train import TrainConfig, train
from volar.vla.training_run import TrainingRun

from .tiny_vlms import tiny_folder, tiny_tokenizer

Settings = Callable[..., TrainConfig]
Look = Callable[[int], Observation]
SameActions = Callable[[TorchPolicy, Policy, int], None]
LAST = Path("run/checkpoints/last/pretrained_model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("smolvlm"))


@pytest.fixture
def settings(dataset: Path, tmp_path: Path) -> Settings:
    base = TrainConfig(
        dataset=dataset,
        output=tmp_path / "run",
        steps=20,
        batch_size=8,
        warmup_steps=2,
        precision="fp32",
        threads=1,
        chunk_length=2,
        save_every_steps=10,
    )
    return lambda **changes: replace(base, **changes)


@pytest.mark.parametrize("decoder", ["parallel", "autoregressive", "flow"])
@pytest.mark.parametrize("backbone", ["tiny", "smolvlm"])
def test_trained_saved_and_run(
    decoder: str, backbone: str, settings: Settings, folder: Path, look: Look, tmp_path: Path
) -> None:
    """The policy directory is all that is needed: the backbone's folder is gone when it is loaded."""
    mine = shutil.copytree(folder, tmp_path / "model")
    of = {"width": 32, "layers": 2} if backbone == "tiny" else {"backbone": str(mine)}
    train(settings(decoder=decoder, learning_rate=3e-3, **of))
    shutil.rmtree(mine)
    policy = load(tmp_path / LAST)
    policy.reset(0)
    found = [policy.predict(look(i)).actions for i in range(2)]
    assert found[0].shape == (2, 7)
    assert np.isfinite(found).all()
    losses = [json.loads(line)["action"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all()
    assert str(tmp_path) not in (tmp_path / LAST / "config.json").read_text()


def test_a_killed_run_ends_with_the_same_bits(
    settings: Settings, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draws of flow, low-rank updates and frozen parts included."""
    of = {"backbone": str(folder), "decoder": "flow", "vision": "frozen", "language": "lora", "save_every_steps": 2}
    train(settings(output=tmp_path / "whole", steps=4, **of))

    class Killed(Exception):
        pass

    step = TrainingRun.train_step

    def killed_at_three(self: TrainingRun, rate: float) -> object:
        if self.step == 3:
            raise Killed
        return step(self, rate)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "train_step", killed_at_three)
        with pytest.raises(Killed):
            train(settings(steps=4, **of))
    train(settings(steps=4, resume=True, **of))
    a, b = (load_file(tmp_path / run / LAST.relative_to("run") / "model.safetensors") for run in ("whole", "run"))
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_parts_train_as_they_are_told(settings: Settings, folder: Path, look: Look, tmp_path: Path) -> None:
    """Frozen stays as it was, full moves, low-rank moves beside; merged, the policy acts the same."""
    before = load_pretrained(str(folder)).backbone.model.state_dict()
    train(settings(backbone=str(folder), vision="lora", connector="full", language="frozen", learning_rate=3e-3))
    model, contract, words = load_parts(tmp_path / LAST)
    trained = model.backbone.model
    for name, value in trained.state_dict().items():
        plain, part = name.replace(".base_layer", ""), part_of(model.backbone, name)
        if ".lora_A" in name or ".lora_B" in name:
            assert part == "vision"
            assert value.abs().max() > 0
        else:
            assert torch.equal(value, before[plain]) == (part != "connector"), name
    grads = {part_of(model.backbone, name) for name, p in trained.named_parameters() if p.requires_grad}
    assert grads == {"vision", "connector"}

    policy = load(tmp_path / LAST)
    pixels, ids = torch.rand(2, 2, 3, 32, 32) * 2 - 1, torch.from_numpy(words.encode(["lift the red block"] * 2))
    with torch.inference_mode():
        apart = model(pixels, ids, torch.zeros(2, 10))
        plain = merge(model)(pixels, ids, torch.zeros(2, 10))
    assert not any(".lora_" in name for name in model.state_dict())
    torch.testing.assert_close(apart.action_logits, plain.action_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(apart.points, plain.points, atol=1e-5, rtol=1e-5)
    assert policy.contract == contract


def test_training_goes_on_from_a_policy_with_another_decoder(settings: Settings, folder: Path, tmp_path: Path) -> None:
    train(settings(backbone=str(folder), language="lora", steps=2, output=tmp_path / "first"))
    train(settings(init=tmp_path / "first", decoder="flow", expert_width=24, steps=1))
    first, second = (load_parts(tmp_path / run / LAST.relative_to("run"))[0] for run in ("first", "run"))
    assert (second.config.decoder, second.config.language) == ("flow", "lora")
    assert second.state_dict()["decoder.velocity_out.weight"].shape == (7, 24)
    name = "model.vision_model.embeddings.patch_embedding.weight"
    drift = (first.backbone.model.state_dict()[name] - second.backbone.model.state_dict()[name]).abs().max()
    assert 0 < drift < 0.01
    with pytest.raises(VolarError, match="has backbone=smolvlm, not tiny"):
        train(settings(init=tmp_path / "first", backbone="tiny", overwrite=True))
    with pytest.raises(UsageError, match=r"decoder=flow; .* has decoder=parallel"):
        train(settings(init=tmp_path / "first", expert_width=24, overwrite=True))


def test_training_spends_nothing_on_padding(settings: Settings, folder: Path) -> None:
    """Nor on a gradient as large as the vocabulary for every piece of text."""
    training = TrainingRun.start(settings(backbone=str(folder), decoder="flow"))
    drawn = training.batch(0)
    short = training.on_device(drawn)
    longest = int((drawn["input_ids"] != NO_TOKEN).sum(1).max())
    assert short["input_ids"].shape[1] == longest < drawn["input_ids"].shape[1]
    lookups: list[int] = []
    training.bare.backbone.model.get_input_embeddings().register_forward_hook(lambda *_: lookups.append(1))
    cut = training.look(short, training.bare)
    assert len(lookups) == 1
    whole = training.look(short | {"input_ids": drawn["input_ids"]}, training.bare)
    assert isinstance(cut, Imitated)
    assert isinstance(whole, Imitated)
    torch.testing.assert_close(cut.action_loss, whole.action_loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cut.points, whole.points, atol=1e-5, rtol=1e-5)


def test_the_prompt_is_the_models_own(settings: Settings, folder: Path, tmp_path: Path) -> None:
    """Head, markers of images and the instruction in its template are what the model was instructed with."""
    train(settings(backbone=str(folder), steps=1))
    model, contract, words = load_parts(tmp_path / LAST)
    tokenizer = SubwordTokenizer(tiny_tokenizer(), 64)
    image = "<fake_token_around_image><global-img><image><fake_token_around_image>"
    whole = f"<|im_start|>User:{image}{image}lift the red block<end_of_utterance>\nAssistant:"
    wanted = [int(i) for i in tokenizer.encode(whole) if i != NO_TOKEN]
    config, placeholder = model.config.backbone, tokenizer.encode("<image>")[0]
    text = words.encode([contract.instruction_template.format(instruction="lift the red block")])[0]
    shown = (*config.image_start, placeholder, *config.image_end)  # type: ignore[union-attr]
    assert [*config.head, *shown, *shown, *(i for i in text if i != NO_TOKEN)] == wanted  # type: ignore[union-attr]
    assert (config.image_mean, config.image_std) == ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))  # type: ignore[union-attr]


def test_added_action_ids_leave_every_word_its_own(settings: Settings, folder: Path, tmp_path: Path) -> None:
    size = load_pretrained(str(folder)).backbone.vocabulary_size
    of = {"backbone": str(folder), "decoder": "autoregressive", "action_ids": "added", "steps": 1}
    train(settings(tokenizer="fast", **of))
    model, *_ = load_parts(tmp_path / LAST)
    assert model.backbone.vocabulary_size == size + model.tokenizer.size + 1  # and the end
    assert model.decoder.first_id == size  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="language=full, or action_ids=last"):
        train(settings(language="lora", overwrite=True, **of))
    with pytest.raises(UsageError, match="decoder=autoregressive of a new run"):
        settings(action_ids="added")


def test_errors_say_what_is_missing(settings: Settings, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Unknown, match=r"a folder with config\.json"):
        load_pretrained("smolvlm")
    with pytest.raises(VolarError, match=r"hf download nobody/nothing --local-dir"):
        load_pretrained("nobody/nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(VolarError, match=r"has no config\.json"):
        load_pretrained(str(tmp_path / "empty"))
    for kind, message in (("bert", "no image-text-to-text model"), ("blip-2", "does not know yet")):
        (tmp_path / "empty" / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(VolarError, match=message):
            load_pretrained(str(tmp_path / "empty"))
    with pytest.raises(VolarError, match=r"24 is not a multiple of 16.*set image_size="):
        load_pretrained(str(folder), image_size=24)
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "preprocessor_config.json").unlink()
    with pytest.raises(VolarError, match="does not say how images are normalized"):
        load_pretrained(str(broken))
    (broken / "tokenizer.json").unlink()
    with pytest.raises(VolarError, match=r"has no tokenizer\.json"):
        load_pretrained(str(broken))
    with pytest.raises(UsageError, match="width and layers"):
        train(settings(backbone=str(folder), width=64))
    with pytest.raises(UsageError, match="loses the small steps of connector=full"):
        train(settings(backbone=str(folder), backbone_dtype="bfloat16", vision="frozen", language="lora"))
    for changes in ({"lora_rank": 4}, {"backbone_dtype": "bfloat16"}, {"image_size": 0}, {"expert_width": 24}):
        with pytest.raises(UsageError, match=next(iter(changes))):
            settings(**changes)
    with pytest.raises(UsageError, match="one token a number"):
        train(settings(tokenizer="fast"))


def test_images_are_resized_to_what_is_asked_for(settings: Settings, folder: Path, look: Look, tmp_path: Path) -> None:
    for of in ({"width": 16, "layers": 1}, {"backbone": str(folder)}):
        train(settings(image_size=16, steps=1, overwrite=True, **of))
        policy = load(tmp_path / LAST)
        assert policy.graph.model.config.backbone.image_size == 16
        assert policy.predict(look(0)).actions.shape == (2, 7)


def test_a_long_instruction_names_the_length() -> None:
    tokenizer = SubwordTokenizer(tiny_tokenizer(), 8)
    assert tokenizer.encode("red").shape == (8,)
    with pytest.raises(TokenizerError, match="takes at most 8"):
        tokenizer.encode("zzzzzzzzzzzz")


def test_a_low_rank_policy_is_exported_merged(
    settings: Settings, folder: Path, require_same_actions: SameActions, tmp_path: Path
) -> None:
    """The artifact reads with the model's own tokenizer, and acts as the policy does."""
    train(settings(backbone=str(folder), vision="frozen", language="lora", steps=2))
    export(ExportConfig(policy=tmp_path / "run", output=tmp_path / "artifact"))
    a, b = load(tmp_path / LAST), ExportedPolicy(tmp_path / "artifact")
    require_same_actions(a, b, 5)
    assert b.unknown_words("pick up the zorg") == ()
    assert b"site-packages" not in (tmp_path / "artifact" / "policy.onnx").read_bytes()


@pytest.mark.parametrize("decoder", ["autoregressive", "flow"])
def test_other_decoders_are_exported(
    decoder: str, settings: Settings, require_same_actions: SameActions, tmp_path: Path
) -> None:
    train(settings(decoder=decoder, width=16, layers=1, chunk_length=1, execute_steps=1, steps=2))
    export(ExportConfig(policy=tmp_path / "run", output=tmp_path / "artifact"))
    a, b = load(tmp_path / LAST), ExportedPolicy(tmp_path / "artifact")
    require_same_actions(a, b, 5)


def test_what_varies_in_length_is_not_exported(settings: Settings, tmp_path: Path) -> None:
    train(settings(decoder="autoregressive", tokenizer="fast", width=16, layers=1, steps=1))
    with pytest.raises(VolarError, match="no static graph decodes"):
        export(ExportConfig(policy=tmp_path / "run", output=tmp_path / "artifact"))


def test_weights_beyond_one_file_lie_beside_it(
    settings: Settings, require_same_actions: SameActions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(settings(width=16, layers=1, steps=1))
    monkeypatch.setattr("volar.vla.export_graph.PROTOBUF_LIMIT", 0)
    export(ExportConfig(policy=tmp_path / "run", output=tmp_path / "artifact"))
    assert "policy.onnx.data" in json.loads((tmp_path / "artifact" / "artifact.json").read_text())["files"]
    a, b = load(tmp_path / LAST), ExportedPolicy(tmp_path / "artifact")
    require_same_actions(a, b, 5)


@pytest.mark.parametrize("decoder", ["autoregressive", "flow"])
def test_scenes_without_actions_teach_pointing_only(decoder: str, settings: Settings, dataset: Path) -> None:
    grounding = TrainingRun.start(settings(stage="grounding", decoder=decoder, width=32, layers=2))
    losses = grounding.train_step(1e-3)
    assert float(losses.action.detach()) == 0
    assert float(losses.patch.detach()) > 0
    both = TrainingRun.start(settings(scenes=dataset, decoder=decoder, width=32, layers=2)).train_step(1e-3)
    assert float(both.action.detach()) > 0
