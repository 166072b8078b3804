"""The policy in LeRobot, by its own programs and loaders: same actions as ours, both ways."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from volar.datasets.lerobot_format import load_contract
from volar.robots.contract import ContractError, PolicyContract
from volar.robots.errors import VolarError
from volar.vla.action_tokenizers.fast import Fast
from volar.vla.backbone import BackboneConfig
from volar.vla.checkpoint_policy import load
from volar.vla.configuration_volar import VolarConfig
from volar.vla.instruction_tokenizer import InstructionTokenizer
from volar.vla.modeling_volar import VolarModel
from volar.vla.processor_volar import PIPELINES, save_policy
from volar.vla.train import TrainConfig, train

from . import lerobot_programs
from .lerobot_programs import (
    TASK,
    Look,
    acts_the_same,
    demonstrations,
    learn,
    lerobot_batch,
    lerobot_train,
    write_episodes,
)

SMALL = {"image_size": 32, "patch_size": 4, "vision_layers": 1, "layers": 2, "width": 32, "vision_width": 32}


@pytest.fixture
def saved(tmp_path: Path, model: VolarModel, contract: PolicyContract) -> Path:
    save_policy(tmp_path / "policy", model, contract, InstructionTokenizer.load())
    return tmp_path / "policy"


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory, contract: PolicyContract) -> Path:
    return write_episodes(tmp_path_factory.mktemp("lerobot") / "episodes", contract)


@pytest.fixture(scope="module")
def run(episodes: Path) -> Path:
    """What lerobot-train leaves of four steps, with checkpoints after each two."""
    output = episodes.parent / "run"
    lerobot_train(
        episodes.parent,
        *("--policy.type=volar", f"--policy.backbone={json.dumps(SMALL)}", "--policy.device=cpu"),
        *("--policy.push_to_hub=false", "--policy.chunk_length=8", "--policy.execute_steps=4"),
        *("--dataset.repo_id=volar/test", f"--dataset.root={episodes}", f"--output_dir={output}", "--steps=4"),
        *("--batch_size=4", "--num_workers=0", "--save_freq=2", "--env_eval_freq=0", "--wandb.enable=false"),
    )
    return output


def test_lerobot_opens_what_we_wrote(saved: Path, look: Look) -> None:
    acts_the_same(saved, look)


def test_processors_made_new_are_those_in_the_directory(saved: Path) -> None:
    from lerobot.policies.factory import make_pre_post_processors

    from volar.vla.lerobot_plugin.configuration_volar import VolarConfig as LeRobotConfig

    for pipeline in make_pre_post_processors(LeRobotConfig(device="cpu")):
        pipeline.save_pretrained(saved / "new")
    for name in PIPELINES:
        assert json.loads((saved / "new" / name).read_text()) == json.loads((saved / name).read_text())


def test_every_field_of_a_policy_is_known_to_lerobot() -> None:
    from volar.vla.lerobot_plugin.configuration_volar import VolarConfig as LeRobotConfig

    assert LeRobotConfig(device="cpu").architecture() == VolarConfig()


def test_lerobot_train_writes_what_we_open(run: Path, episodes: Path, look: Look) -> None:
    directory = run / "checkpoints" / "last" / "pretrained_model"
    policy = load(directory)
    assert policy.contract.statistics == load_contract(episodes).statistics
    assert policy.tokenizer.unknown_words(TASK) == ()
    acts_the_same(directory, look)


def test_new_words_of_a_dataset_are_learned(
    saved: Path, episodes: Path, tmp_path: Path, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by volar-train init=; a policy that lerobot-train resumes keeps the words that it was begun with."""
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata

    from volar.vla.lerobot_plugin.modeling_volar import VolarPolicy

    data, before = LeRobotDatasetMetadata("volar/test", root=episodes), load(saved).tokenizer
    assert before.unknown_words(TASK) == ("zyx",)
    policy = VolarPolicy.from_pretrained(saved, dataset_meta=data)
    optimizer = torch.optim.SGD(policy.get_optim_params(), lr=0.1)
    words = policy.graph.model.backbone.model.get_input_embeddings().weight.detach().clone()
    learn(policy, demonstrations(policy), optimizer)
    policy.save_pretrained(tmp_path / "learned")
    found = load(tmp_path / "learned")
    (old,), (new,) = (tokenizer.encode([TASK]) for tokenizer in (before, found.tokenizer))
    (place,) = np.flatnonzero(old != new)  # of zyx, which was <unk>
    moved = (found.graph.model.backbone.model.get_input_embeddings().weight - words).abs().amax(1)
    assert moved[new[place]] > 0
    assert moved[old[place]] == 0
    acts_the_same(tmp_path / "learned", look)

    monkeypatch.setattr("sys.argv", ["lerobot-train", "--config_path=there", "--resume=true"])
    np.testing.assert_array_equal(
        VolarPolicy.from_pretrained(saved, dataset_meta=data).tokenizer.encode([TASK]), old[None]
    )


def test_weights_that_lerobot_gathered_are_saved(saved: Path, tmp_path: Path) -> None:
    """As without; under FSDP each weight comes by itself, also where two names have one (the tied head)."""
    from volar.vla.lerobot_plugin.modeling_volar import VolarPolicy

    policy = VolarPolicy.from_pretrained(saved)
    policy.save_pretrained(tmp_path / "own")
    weights = {name: value.clone() for name, value in policy.state_dict().items()}
    with torch.no_grad():
        for parameter in policy.parameters():  # stands for a part of the weights
            parameter.zero_()
    drawn = torch.get_rng_state()
    policy.save_pretrained(tmp_path / "given", state_dict=weights)
    assert torch.equal(torch.get_rng_state(), drawn)  # what a resumed run goes on from
    assert not any(parameter.any() for parameter in policy.parameters())
    own, given = ({path.name: path for path in (tmp_path / name).iterdir()} for name in ("own", "given"))
    assert own.keys() == given.keys()
    files = [load_file(folder.pop("model.safetensors")) for folder in (own, given)]
    torch.testing.assert_close(files[1], files[0], atol=0, rtol=0)
    for name, path in own.items():
        assert path.read_bytes() == given[name].read_bytes(), name
    load(tmp_path / "given")


def test_a_policy_whose_weights_processes_share_is_saved(saved: Path, tmp_path: Path, look: Look) -> None:
    """Two of them leave what one does; and go on."""
    from volar.vla.lerobot_plugin.modeling_volar import VolarPolicy

    command = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, lerobot_programs.__file__, str(saved), str(tmp_path / "two")],
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    policy = VolarPolicy.from_pretrained(saved)
    optimizer = torch.optim.SGD(policy.get_optim_params(), lr=0.1)
    for step in ("1", "2"):
        learn(policy, demonstrations(policy), optimizer)
        policy.save_pretrained(tmp_path / "one" / step)
        one, two = (load_file(tmp_path / name / step / "model.safetensors") for name in ("one", "two"))
        assert one.keys() == two.keys()
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4, msg=name)
    acts_the_same(tmp_path / "two" / "2", look)


def test_lerobot_train_resumes_to_the_same_weights(run: Path) -> None:
    weights = run / "checkpoints" / "000004" / "pretrained_model" / "model.safetensors"
    uninterrupted = load_file(weights)
    shutil.rmtree(run / "checkpoints" / "000004")
    checkpoint = run / "checkpoints" / "000002" / "pretrained_model" / "train_config.json"
    lerobot_train(run.parent, f"--config_path={checkpoint}", "--resume=true")
    again, halfway = load_file(weights), load_file(str(weights).replace("000004", "000002"))
    for name, value in uninterrupted.items():
        torch.testing.assert_close(again[name], value, atol=0, rtol=0)
    assert any(not torch.equal(halfway[name], value) for name, value in uninterrupted.items())


@pytest.mark.parametrize(
    ("decoder", "tokenizer"),
    [("parallel", "bins"), ("autoregressive", "bins"), ("autoregressive", "fast"), ("flow", "bins")],
)
def test_every_decoder_learns_and_acts_in_lerobot(
    decoder: Any, tokenizer: str, episodes: Path, contract: PolicyContract, tmp_path: Path, look: Look
) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata

    from volar.vla.lerobot_plugin.configuration_volar import VolarConfig as LeRobotConfig
    from volar.vla.lerobot_plugin.modeling_volar import VolarPolicy

    torch.manual_seed(0)
    if tokenizer == "fast":  # trained by ours, on demonstrations; LeRobot goes on from there
        fast = Fast.train(np.zeros((20, 8, 7)))
        sizes: dict[str, Any] = {"decoder": decoder, "tokenizer": "fast", "action_tokens": fast.size}
        network = VolarModel(VolarConfig(BackboneConfig(**SMALL), **sizes), contract, tokenizer=fast)
        save_policy(tmp_path / "begun", network, contract, InstructionTokenizer.load())
        policy = VolarPolicy.from_pretrained(tmp_path / "begun")
    else:
        config = LeRobotConfig(device="cpu", backbone=SMALL, decoder=decoder, expert_width=32)
        policy = VolarPolicy(config, LeRobotDatasetMetadata("volar/test", root=episodes))
    batch = demonstrations(policy)
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=3e-3)
    losses = []
    for _ in range(10):
        torch.manual_seed(1)  # the noise of flow
        loss, parts = policy.forward(batch)
        losses.append(parts["total"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1
    policy.save_pretrained(tmp_path / "learned")
    acts_the_same(tmp_path / "learned", look)


def test_another_chunk_than_the_contract_s_is_an_error(saved: Path) -> None:
    from volar.vla.lerobot_plugin.configuration_volar import VolarConfig as LeRobotConfig
    from volar.vla.lerobot_plugin.modeling_volar import VolarPolicy

    with pytest.raises(VolarError, match="chunk_length is 5, but the contract of the policy says 8"):
        VolarPolicy.from_pretrained(saved, config=LeRobotConfig(device="cpu", chunk_length=5))


def test_flags_that_want_another_network_are_refused(saved: Path) -> None:
    """LeRobot puts them beside `--policy.path`; a network that was trained cannot become another."""
    from volar.vla.lerobot_plugin.configuration_volar import VolarConfig as LeRobotConfig
    from volar.vla.lerobot_plugin.modeling_volar import VolarPolicy

    for flag, says in (("decoder=flow", "decoder=parallel, not flow"), ("vision=frozen", "vision=full, not frozen")):
        config = LeRobotConfig.from_pretrained(saved, cli_overrides=["--device=cpu", f"--{flag}"])
        with pytest.raises(VolarError, match=f"the trained policy has {says}"):
            VolarPolicy.from_pretrained(saved, config=config)


def test_an_adapter_that_would_lose_something_is_refused(
    saved: Path, episodes: Path, contract: PolicyContract, tmp_path: Path
) -> None:
    """`lerobot-train --peft`: low-rank updates have one name there and here, and adapters come without vocabulary."""
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata

    from volar.vla.lerobot_plugin.modeling_volar import VolarPolicy

    low_rank = VolarModel(VolarConfig(BackboneConfig(**SMALL), language="lora", lora_rank=2), contract)
    save_policy(tmp_path / "low_rank", low_rank, contract, InstructionTokenizer.load())
    data = LeRobotDatasetMetadata("volar/test", root=episodes)
    flags = {"method_type": "LORA", "r": 4, "target_modules": ["q_proj"]}
    for folder, given, says in (
        (tmp_path / "low_rank", None, "has low-rank updates"),
        (saved, data, r"the words \['zyx'\]"),
        (saved, None, ""),
    ):
        policy = VolarPolicy.from_pretrained(folder, dataset_meta=given)
        policy.config.pretrained_path = folder  # as `--policy.path` sets it
        with pytest.raises(VolarError, match=says) if says else nullcontext():
            policy.wrap_with_peft(peft_cli_overrides=flags)


def test_what_a_new_policy_cannot_be_is_said_before_it_trains(episodes: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata

    from volar.vla.lerobot_plugin.configuration_volar import VolarConfig as LeRobotConfig
    from volar.vla.lerobot_plugin.modeling_volar import VolarPolicy

    data = LeRobotDatasetMetadata("volar/test", root=episodes)
    wrong: dict[str, dict[str, Any]] = {
        "n_obs_steps is 2": {"n_obs_steps": 2},
        r"--policy\.camera_tokens=\[8, 4\]": {"camera_tokens": (8,)},
        f"'{TASK}' has 4 words, the policy takes at most 3": {"text_length": 4},
    }
    for says, settings in wrong.items():
        with pytest.raises(VolarError, match=says):
            VolarPolicy(LeRobotConfig(device="cpu", backbone=SMALL, **settings), data)


def test_a_new_policy_says_what_its_network_makes_of_images(episodes: Path, tmp_path: Path) -> None:
    """As one of volar-train does, in its contract."""
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata

    from volar.vla.lerobot_plugin.configuration_volar import VolarConfig as LeRobotConfig
    from volar.vla.lerobot_plugin.modeling_volar import VolarPolicy

    config = LeRobotConfig(device="cpu", backbone=SMALL | {"image_size": 48, "patch_size": 6})
    policy = VolarPolicy(config, LeRobotDatasetMetadata("volar/test", root=episodes))
    assert policy.contract.preprocessing["network.image"] == "48x48 antialiased"
    policy.save_pretrained(tmp_path / "policy")
    assert load(tmp_path / "policy").contract == policy.contract


def test_a_policy_comes_from_the_cache_that_it_is_to_come_from(saved: Path, tmp_path: Path) -> None:
    from volar.vla.lerobot_plugin.modeling_volar import VolarPolicy

    repository = tmp_path / "cache" / "models--volar--test"
    shutil.copytree(saved, repository / "snapshots" / "0123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    policy = VolarPolicy.from_pretrained("volar/test", cache_dir=tmp_path / "cache", local_files_only=True)
    assert policy.contract == load(saved).contract


def test_a_dataset_of_another_contract_is_refused(
    episodes: Path, model: VolarModel, contract: PolicyContract, tmp_path: Path
) -> None:
    from volar.vla.lerobot_plugin.modeling_volar import VolarPolicy

    other = replace(contract, action=replace(contract.action, gripper="open_is_zero"))
    save_policy(tmp_path / "other", model, other, InstructionTokenizer.load())
    with pytest.raises(ContractError, match=r"episodes does not fit the policy: .*gripper.*open_is_zero"):
        VolarPolicy.from_pretrained(tmp_path / "other", dataset_meta=SimpleNamespace(root=episodes))


def test_flow_learns_what_it_can_say(episodes: Path) -> None:
    """Actions beyond the quantiles count as those at them, as in volar-train."""
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata

    from volar.vla.lerobot_plugin.configuration_volar import VolarConfig as LeRobotConfig
    from volar.vla.lerobot_plugin.modeling_volar import VolarPolicy

    config = LeRobotConfig(device="cpu", backbone=SMALL, decoder="flow", expert_width=32)
    policy = VolarPolicy(config, LeRobotDatasetMetadata("volar/test", root=episodes))
    batch = {f"observation.images.{c.name}": torch.rand(2, 3, 32, 32) for c in policy.contract.cameras}
    batch |= {"observation.state": torch.zeros(2, 10), "task": ["lift the zyx block"] * 2}
    losses = []
    bounded = torch.isfinite(policy.action_limit) & (policy.action_scale > 0)
    for beyond in (1.0, 10.0):
        torch.manual_seed(1)
        actions = policy.action_offset + beyond / policy.action_scale.where(bounded, torch.inf)
        losses.append(policy.forward(batch | {"action": actions.expand(2, 8, 7)})[1]["action"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_make_policy_opens_what_our_trainer_wrote(
    settings: Callable[..., TrainConfig], episodes: Path, look: Look
) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata
    from lerobot.policies.factory import make_policy

    from volar.vla.lerobot_plugin.configuration_volar import VolarConfig as LeRobotConfig

    config = settings(steps=1)
    train(config)
    directory = config.output / "checkpoints" / "last" / "pretrained_model"
    read = LeRobotConfig.from_pretrained(directory, cli_overrides=["--device=cpu"])
    read.pretrained_path = directory
    policy = make_policy(read, ds_meta=LeRobotDatasetMetadata("volar/test", root=episodes))
    batch = {key: value[None] if torch.is_tensor(value) else value for key, value in lerobot_batch(look(0)).items()}
    np.testing.assert_allclose(
        policy.predict_action_chunk(batch)[0].numpy(), load(directory).predict(look(0)).actions, atol=1e-6
    )


def test_a_policy_says_what_it_takes_and_refuses_another_size(saved: Path, contract: PolicyContract) -> None:
    """A network would resize; the contract does not allow it, and neither loader has another word on it."""
    from volar.vla.lerobot_plugin.modeling_volar import VolarPolicy

    policy = VolarPolicy.from_pretrained(saved)
    shapes = {key: feature.shape for key, feature in policy.config.input_features.items()}
    assert shapes == {"observation.images.front": (3, 32, 32), "observation.images.wrist": (3, 32, 32)} | {
        "observation.state": (len(contract.state_names),)
    }
    batch: dict[str, Any] = {key: torch.zeros(1, *shape) for key, shape in shapes.items()} | {"task": "lift"}
    policy.select_action(batch)
    for key, wrong in (("observation.images.wrist", (3, 64, 64)), ("observation.state", (7,))):
        with pytest.raises(VolarError, match=f"{key} is .*; the policy's contract wants"):
            policy.predict_action_chunk(batch | {key: torch.zeros(1, *wrong)})
    del batch["observation.images.front"]
    with pytest.raises(VolarError, match=r"lacks .*images\.front"):
        policy.predict_action_chunk(batch)
