"""LeRobot policies, saved by LeRobot, through the adapter: its own numbers, or a named refusal."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from volar.robots.contract import ContractError, require
from volar.robots.errors import VolarError
from volar.robots.interface import Observation, Policy
from volar.robots.joint_units import PERCENT, JointUnits, half_ranges_deg
from volar.robots.lerobot_contract import FactMissing
from volar.robots.lerobot_facts import FactsConfig, write_facts
from volar.robots.lerobot_policy import LeRobotPolicy
from volar.robots.lerobot_statistics import MissingStatistics
from volar.robots.policies import load_policy, read_contract
from volar.robots.policy_source import open_source
from volar.robots.so101 import SO101
from volar.robots.spec import load_robot
from volar.sim.closed_loop import ClosedLoop
from volar.sim.control import ControlConfig, control

# Not the robot's order, so that an adapter that goes by index is found out.
NAMES = ("gripper.pos", *(f"{name}.pos" for name in reversed(SO101.joint_names)))
SIZES: dict[str, dict[str, Any]] = {
    "act": {
        "chunk_size": 8,
        "n_action_steps": 4,
        "dim_model": 32,
        "n_heads": 2,
        "dim_feedforward": 32,
        "n_encoder_layers": 1,
        "n_vae_encoder_layers": 1,
        "latent_dim": 8,
        "pretrained_backbone_weights": None,
    },
    "diffusion": {
        "horizon": 8,
        "n_action_steps": 4,
        "down_dims": (16, 32),
        "num_train_timesteps": 4,
        "num_inference_steps": 2,
        "crop_shape": None,
        "pretrained_backbone_weights": None,
        "spatial_softmax_num_keypoints": 4,
    },
    "vqbet": {
        "crop_shape": None,
        "crop_is_random": False,
        "pretrained_backbone_weights": None,
        "action_chunk_size": 4,
        "n_action_pred_token": 2,
        "gpt_n_layer": 1,
        "gpt_n_head": 2,
        "gpt_hidden_dim": 32,
        "gpt_input_dim": 32,
        "gpt_output_dim": 32,
        "vqvae_n_embed": 4,
        "vqvae_embedding_dim": 16,
        "vqvae_enc_hidden_dim": 16,
    },
    "gaussian_actor": {},
}


def make(folder: Path, kind: str = "act", statistics: bool = True) -> Path:
    """A policy of random weights, with LeRobot's own processors."""
    if kind == "diffusion":
        pytest.importorskip("diffusers")
    import torch
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    config = make_policy_config(
        kind,
        device="cpu",
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (6,)),
            "observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, 64, 96)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (6,))},
        **SIZES[kind],
    )
    shapes = {"observation.state": (6,), "action": (6,), "observation.images.top": (3, 1, 1)}
    low = {key: rng.uniform(-20, -10, shape).astype(np.float32) for key, shape in shapes.items()}
    stats = {key: {"min": low[key], "max": -low[key], "mean": low[key] / 10, "std": -low[key] / 2} for key in shapes}
    policy = get_policy_class(kind)(config)
    pipelines = make_pre_post_processors(config, dataset_stats=stats if statistics else None)
    for part in (policy, *pipelines):
        part.save_pretrained(folder)
    return folder


def facts(folder: Path, **changes: Any) -> FactsConfig:
    told: dict[str, Any] = {
        "robot": "so101",
        "rate_hz": 30.0,
        "action_names": NAMES,
        "state_names": NAMES,
        "unit": "degrees",
        "gripper": (2.0, 40.0),
        "cameras": {"top": "front"},
    }
    return FactsConfig(folder, **told | changes)


@pytest.fixture(scope="module")
def act(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make(tmp_path_factory.mktemp("policies") / "act")
    write_facts(facts(folder))
    return folder


def observations(count: int) -> list[Observation]:
    rng = np.random.default_rng(1)
    step = 1_000_000_000 / 30
    return [
        Observation(
            {"front": rng.integers(0, 256, (64, 96, 3), np.uint8)},
            np.append(rng.uniform(-1, 1, 5), rng.uniform(0, 0.05)).astype(np.float32),
            "lift the block",
            round(i * step),
        )
        for i in range(count)
    ]


def to_lerobot(state: Any) -> Any:
    """Written out once more, in the policy's order: the gripper first, then the joints from the wrist down."""
    gripper = 2.0 + 38.0 * state[-1] / SO101.gripper_width_max
    return np.array([gripper, *np.degrees(state[-2::-1].astype(np.float64))], np.float32)


@pytest.mark.parametrize("kind", SIZES)
def test_actions_are_those_of_lerobots_own_pipeline(kind: str, tmp_path: Path) -> None:
    import torch
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    folder = make(tmp_path / kind, kind)
    write_facts(facts(folder))
    ours = LeRobotPolicy(folder)
    config = PreTrainedConfig.from_pretrained(folder)
    theirs = get_policy_class(kind).from_pretrained(folder, config=config).eval()
    before, after = make_pre_post_processors(config, pretrained_path=str(folder))
    for observation in observations(2):  # each from the start: LeRobot's queue would answer the first one for a while
        ours.reset(3)
        theirs.reset()
        torch.manual_seed(3)
        chunk = ours.predict(observation).actions.astype(np.float64)
        image = torch.from_numpy(observation.images["front"]).permute(2, 0, 1)[None].float() / 255
        batch = {
            "observation.images.top": image,
            "observation.state": torch.from_numpy(to_lerobot(observation.state)),
            "task": observation.instruction,
        }
        with torch.no_grad():
            native = [after(theirs.select_action(before(dict(batch))))[0].numpy() for _ in range(min(len(chunk), 4))]
        joints = np.radians(np.array(native, np.float64)[:, :0:-1])
        opening = (np.array(native)[:, :1] - 2.0) / 38.0
        np.testing.assert_allclose(chunk[: len(native)], np.hstack([joints, opening]), atol=1e-6, rtol=1e-6)
    assert np.ptp(chunk) > 1e-3


def test_the_seed_decides_and_nothing_else_is_disturbed(tmp_path: Path) -> None:
    import torch

    folder = make(tmp_path / "p", "vqbet")
    write_facts(facts(folder))
    policy, seen = LeRobotPolicy(folder), observations(3)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    runs = []
    for _ in range(2):
        policy.reset(7)
        runs.append([policy.predict(observation).actions for observation in seen])
    np.testing.assert_array_equal(runs[0], runs[1])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("key", ["observation.state.mean", "observation.images.top.std", "action.mean"])
def test_a_missing_statistic_is_refused_by_name(act: Path, tmp_path: Path, key: str) -> None:
    folder = make(tmp_path / "p")
    file = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
    if not key.startswith("action"):
        file = "policy_preprocessor_step_3_normalizer_processor.safetensors"
    found = load_file(folder / file)
    found.pop(key)
    save_file(found, folder / file)
    with pytest.raises(MissingStatistics, match="pass these values through unchanged") as raised:
        write_facts(facts(folder))
    assert raised.value.wanted == [key]
    assert not (folder / "volar_facts.json").exists()
    (folder / "volar_facts.json").write_bytes((act / "volar_facts.json").read_bytes())
    with pytest.raises(MissingStatistics, match=key):  # nor by somebody who copies the facts
        load_policy(Path(f"lerobot:{folder}"))


def test_processors_without_any_statistics_are_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "p", statistics=False)
    with pytest.raises(MissingStatistics, match="found none"):
        write_facts(facts(folder))


def test_the_contract_needs_no_weights_and_its_hash_moves_with_what_decides(act: Path, tmp_path: Path) -> None:
    folder = make(tmp_path / "p")
    (folder / "model.safetensors").unlink()
    write_facts(facts(folder))
    contract = read_contract(folder)
    assert contract.sha256 == read_contract(act).sha256
    assert (contract.chunk_length, contract.execute_steps) == (8, 4)
    assert [(c.name, c.width, c.height) for c in contract.cameras] == [("front", 96, 64)]
    require(contract, SO101)
    for change in ({"rate_hz": 20.0}, {"gripper": (40.0, 2.0)}, {"unit": "radians"}, {"execute_steps": 2}):
        write_facts(facts(folder, overwrite=True, **change))  # type: ignore[arg-type]
        assert read_contract(folder).sha256 != contract.sha256


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"unit": None}, "does not say the units"),
        ({"gripper": None}, "gripper=CLOSED,OPEN"),
        ({"rate_hz": None}, "how many actions a second"),
        ({"state_names": ()}, "what the numbers of observation.state are"),
    ],
)
def test_what_nobody_told_is_named(tmp_path: Path, act: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(FactMissing, match=said):
        write_facts(facts(act, overwrite=True, **change))


def test_facts_that_do_not_fit_are_named(tmp_path: Path, act: Path) -> None:
    with pytest.raises(VolarError, match=r"joints .* are not those of fr3: fr3_joint1"):
        write_facts(facts(act, robot="fr3", overwrite=True))
    with pytest.raises(ContractError, match=r"cameras\.top"):
        write_facts(facts(act, cameras={}, overwrite=True))
    with pytest.raises(VolarError, match="must name each"):
        write_facts(facts(act, cameras={"wrist": "front"}, overwrite=True))
    with pytest.raises(VolarError, match="needs ranges of a calibration"):
        write_facts(facts(act, unit=PERCENT, overwrite=True))
    with pytest.raises(ContractError, match="robot: policy wants so101, found fr3"):
        require(read_contract(act), load_robot("fr3"))
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in act.iterdir():
        if file.suffix == ".json" and file.name != "volar_facts.json":
            (bare / file.name).write_bytes(file.read_bytes())
    with pytest.raises(FactMissing, match="which robot it drives"):
        open_source(f"lerobot:{bare}")


def test_names_and_rate_come_from_the_dataset(act: Path, tmp_path: Path) -> None:
    info = {"fps": 15, "features": {key: {"names": list(NAMES)} for key in ("action", "observation.state")}}
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/info.json").write_text(json.dumps(info))
    folder = make(tmp_path / "p")
    found = write_facts(facts(folder, dataset=tmp_path, rate_hz=None, action_names=(), state_names=()))
    assert (found.rate_hz, found.action_names, found.state_names) == (15.0, NAMES, NAMES)


def test_units_round_trip() -> None:
    calibration = {
        name: {"range_min": 1000, "range_max": 3000 + 10 * i, "drive_mode": i % 2}
        for i, name in enumerate(SO101.joint_names)
    }
    ranges = half_ranges_deg(calibration, SO101.joint_names)
    assert [r > 0 for r in ranges] == [True, False, True, False, True]
    rng = np.random.default_rng(2)
    for units in (JointUnits("degrees", 0, 35), JointUnits("radians", 1, 0), JointUnits(PERCENT, 100, 0, ranges)):
        for _ in range(50):
            q, opening = rng.uniform(-1.7, 1.7, 5), rng.uniform()
            again = units.from_native(units.to_native(q, opening))
            np.testing.assert_allclose(again, [*q, opening], atol=1e-12)
    end = np.radians(np.array(ranges))
    np.testing.assert_allclose(JointUnits(PERCENT, 0, 1, ranges).to_native(end, 0.0)[:5], 100.0)


def test_it_drives_the_simulated_arm_within_limits(act: Path) -> None:
    policy: Policy = load_policy(Path(f"lerobot:{act}"))
    loop = ClosedLoop(policy, "reach", "so101", latency_s=0.05, max_steps=30)
    record = loop.run(seed=4)
    q = np.array([command.q for command in loop.trace.commands])
    loop.close()
    assert not record.reason
    assert record.steps == 30
    assert np.ptp(q, axis=0).max() > 0.02  # it does move
    assert min(vars(record.margins).values() if hasattr(record.margins, "__dict__") else record.margins.values()) >= 0


@pytest.mark.real_time
def test_it_runs_in_a_process_of_its_own(act: Path, tmp_path: Path) -> None:
    config = ControlConfig(f"lerobot:{act}", "sim/so101", task="reach", duration_s=3.0, output=tmp_path / "out")
    result = control(config)
    assert result["policy_restarts"] == 0
    assert result["invalid"] == 0
    assert result["inference_ms"]["p50"] > 0
    assert min(result["margins"].values()) >= 0
