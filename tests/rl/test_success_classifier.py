"""A learned judge of success: what it says of itself, what it refuses, and that fine-tuning follows it."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from volar.rl.episodes import Job, Setting
from volar.rl.finetune import FinetuneConfig, finetune
from volar.rl.rollouts import RolloutWorker, WorkerSetup
from volar.rl.success_classifier import EPISODES, RESULTS, ClassifierConfig, train_classifier
from volar.rl.success_episodes import (
    TRAINING,
    LabelledEpisode,
    Source,
    Wanted,
    make_episodes,
    read_episodes,
    write_episode,
)
from volar.rl.success_network import (
    HEAD,
    TRUNK,
    Facts,
    SuccessNetwork,
    load_classifier,
    require_classifier,
    save_classifier,
)
from volar.rl.success_training import Agreement, Judged, agreement, choose_threshold, fit
from volar.robots.contract import CameraSpec, ContractError
from volar.robots.errors import UsageError, VolarError
from volar.vla.checkpoint_policy import load_parts
from volar.vla.instruction_tokenizer import InstructionTokenizer

SHIPPED = Path(__file__).parents[2] / "vla" / "checkpoints" / "tiny"


def test_precision_and_recall_of_a_hand_made_example() -> None:
    found = Agreement.of([True, True, True, False, False], [True, True, False, True, False])
    assert (found.true_yes, found.false_yes, found.missed, found.true_no) == (2, 1, 1, 1)
    assert found.precision == pytest.approx(2 / 3)
    assert found.recall == pytest.approx(2 / 3)
    low, high = found.report()["precision_wilson95"]
    assert low < 2 / 3 < high
    assert Agreement.of([False], [False]).report()["precision"] is None


def episode(probabilities: list[float], success: list[bool], followed: bool = True) -> Judged:
    return Judged("lift", followed, np.array(probabilities), np.array(success))


def test_success_is_a_streak_and_the_truth_counts_up_to_its_end() -> None:
    flicker = episode([0.9, 0.1, 0.9, 0.1], [False] * 4)
    assert flicker.verdict(0.5, 2) == (False, False)
    early = episode([0.1, 0.9, 0.9, 0.9], [False, False, False, True])
    assert early.verdict(0.5, 2) == (True, False)  # it ended the episode before it was true
    assert early.verdict(0.5, 3) == (True, True)
    assert early.verdict(0.95, 2) == (False, True)
    assert agreement([flicker, early], 0.5, 3).report()["precision"] == 1.0


def test_the_threshold_is_precise_before_it_is_generous() -> None:
    true = [episode([p, p], [False, True]) for p in (0.72, 0.9, 0.96)]
    false = [episode([0.65, 0.65], [False, False], followed=False)]
    assert choose_threshold(true + false, 2, precision=0.99) == 0.7  # all successes, none of what is none
    assert choose_threshold(true + false, 2, precision=0.7) == 0.7  # as good as the more generous ones, and stricter
    worse = [*false, episode([0.92, 0.92], [False, False])]
    assert choose_threshold(true + worse, 2, precision=0.99) == 0.95  # at the price of recall


@pytest.fixture
def network(small: SimpleNamespace) -> SuccessNetwork:
    contract = small.contract()
    torch.manual_seed(1)
    return SuccessNetwork(small.model(contract), contract, InstructionTokenizer.load()).eval()


def generous(network: SuccessNetwork, folder: Path) -> Path:
    """A classifier of reach that takes everything for success."""
    save_classifier(folder, network, Facts(network.contract.sha256, {"reach": 0.0}, 3, "none"))
    return folder


def test_it_comes_back_as_it_was(network: SuccessNetwork, tmp_path: Path) -> None:
    network.mean.normal_()
    found = load_classifier(generous(network, tmp_path))
    features = np.random.default_rng(0).normal(size=(5, len(network.mean))).astype(np.float32)
    assert np.array_equal(found.network.probabilities(features), network.probabilities(features))
    assert found.facts.thresholds == {"reach": 0.0}


def test_what_is_broken_is_named(network: SuccessNetwork, tmp_path: Path) -> None:
    with pytest.raises(VolarError, match=r"no trained classifier .*success_classifier"):
        load_classifier(tmp_path)
    generous(network, tmp_path)
    whole = (tmp_path / HEAD).read_bytes()
    (tmp_path / HEAD).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VolarError, match=HEAD):
        load_classifier(tmp_path)
    (tmp_path / HEAD).write_bytes(whole)
    other = replace(network.contract, execute_steps=1)
    other.save(tmp_path / TRUNK / "contract.json")
    with pytest.raises(VolarError, match=r"trained under contract"):
        load_classifier(tmp_path)


def test_a_policy_that_sees_something_else_is_refused_with_the_fields(network: SuccessNetwork, tmp_path: Path) -> None:
    folder, own = generous(network, tmp_path), network.contract
    require_classifier(folder, replace(own, execute_steps=1, statistics={}), ("reach",))  # not what is seen
    other = replace(own, preprocessing=own.preprocessing | {"network.image": "64x64", "normalization": "mean_std"})
    require_classifier(folder, other, ("reach",))  # nor is what the policy makes of it
    other = replace(own, preprocessing=own.preprocessing | {"color": "BGR"})
    with pytest.raises(ContractError, match=r"preprocessing\.color: .*BGR"):
        require_classifier(folder, other, ("reach",))
    cameras = (*own.cameras[:1], CameraSpec("wrist", 64, 64))
    other = replace(own, cameras=cameras, state_units=("inch", *own.state_units[1:]))
    with pytest.raises(ContractError, match=r"cameras: .*64.*state_units: .*inch"):
        require_classifier(folder, other, ("reach",))
    with pytest.raises(VolarError, match=r"not learned lift \(it knows reach\)"):
        require_classifier(folder, own, ("reach", "lift"))


def metrics(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def tuning(policy: Path, output: Path, **other: object) -> FinetuneConfig:
    small: dict[str, object] = {"tasks": ("reach",), "episodes": 2, "workers": 1, "evaluation_episodes": 1}
    small |= {"updates": 1, "evaluate_every": 1, "report_episodes": 0, "reward": "classifier"}
    return FinetuneConfig(policy=policy, output=output, **(small | other))  # type: ignore[arg-type]


def test_finetuning_follows_it_and_is_still_held_to_the_truth(
    network: SuccessNetwork, policy_folder: Path, tmp_path: Path
) -> None:
    classifier = generous(network, tmp_path / "generous")
    finetune(tuning(policy_folder, tmp_path / "run", classifier=classifier))
    held_out, update = metrics(tmp_path / "run")
    assert update["env_steps"] == 2 * 3  # three steps in a row end each of the two episodes
    assert (update["rewarded"], update["success"], update["reward_precision"]) == (1.0, 0.0, 0.0)
    assert held_out["held_out"] == update["held_out"] == 0.0  # a network of noise reaches nothing


def test_it_ends_what_is_practised_and_nothing_that_is_held_out(
    network: SuccessNetwork, policy_folder: Path, tmp_path: Path, small: SimpleNamespace
) -> None:
    setting = Setting(("reach",), reward="classifier", classifier=str(generous(network, tmp_path)))
    worker = RolloutWorker(WorkerSetup(policy_folder, 4, small.own_tokens, "head", setting))
    practised, held_out = (worker.runner.run(Job("reach", 5, held_out=held)) for held in (False, True))
    worker.close()
    assert (practised.steps.sum(), held_out.steps.sum()) == (3, 40)
    assert (practised.rewards.sum(), held_out.rewards.sum()) == (pytest.approx(0.99**2), 0.0)
    assert practised.terminated
    assert not practised.success


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"classifier": None}, "needs its folder"), ({"reward": "dense"}, "needs its folder"), ({"reward": "x"}, "dense")],
)
def test_a_reward_without_its_classifier_is_refused(wrong: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        tuning(tmp_path, tmp_path / "run", **({"classifier": tmp_path} | wrong))


def config(policy: Path, output: Path, **other: object) -> ClassifierConfig:
    small: dict[str, object] = {"tasks": ("reach",), "episodes": 2, "validation_episodes": 1, "held_out_episodes": 1}
    return ClassifierConfig(policy=policy, output=output, workers=1, **(small | other))  # type: ignore[arg-type]


def test_the_verb_leaves_a_classifier_and_goes_on_where_it_was(policy_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "success"
    found = train_classifier(config(policy_folder, output, resume=True))  # nothing yet: it begins
    assert json.loads((output / RESULTS).read_text()) == found
    counted = found["held_out"]["reach"]
    assert sum(counted["episodes"][key] for key in ("true_yes", "false_yes", "missed", "true_no")) == 1
    assert counted["wrong_order"]["episodes"] == 1
    assert load_classifier(output).facts.thresholds.keys() == {"reach"}
    made = sorted((output / EPISODES).iterdir())
    before = made[0].stat().st_mtime_ns
    made[-1].unlink()
    assert train_classifier(config(policy_folder, output, resume=True)) == found
    assert made[0].stat().st_mtime_ns == before  # what was there was not made again
    with pytest.raises(VolarError, match="seed: was 0, is 1"):
        train_classifier(config(policy_folder, output, resume=True, seed=1))
    with pytest.raises(VolarError, match="resume=true continues it"):
        train_classifier(config(policy_folder, output))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"tasks": ()}, "tasks="), ({"precision": 0.0}, "precision"), ({"consecutive": 0}, "at least 1")],
)
def test_wrong_settings_are_refused(wrong: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        config(tmp_path, tmp_path / "out", **wrong)


@pytest.fixture(scope="module")
def lifts(tmp_path_factory: pytest.TempPathFactory) -> tuple[SuccessNetwork, list[LabelledEpisode]]:
    """Some of the expert's lifts, as the shipped policy's trunk sees them, from the disk."""
    folder: Path = tmp_path_factory.mktemp("lifts")
    wanted = [Wanted(TRAINING, "lift", number) for number in (1, 3, 5)]
    make_episodes(Source(SHIPPED, ("lift",), "fr3", "none", 0), wanted, folder, workers=1)
    return SuccessNetwork(*load_parts(SHIPPED)).eval(), read_episodes(folder, wanted)


def test_each_order_is_labelled_by_itself(lifts: tuple[SuccessNetwork, list[LabelledEpisode]]) -> None:
    for lift in lifts[1]:
        assert lift.success[0].any()
        assert not lift.success[0, 0]
        assert not lift.success[1].any()  # told another block, lifting this one is no success
        assert lift.instructions[0] != lift.instructions[1]
        assert not np.array_equal(lift.features[0], lift.features[1])  # the words reach the features


def test_it_learns_to_tell_the_end_from_the_beginning_and_one_order_from_another(
    lifts: tuple[SuccessNetwork, list[LabelledEpisode]],
) -> None:
    network, episodes = lifts
    torch.manual_seed(0)
    fit(network, episodes, episodes, seed=0)
    for lift in episodes:
        own, other = (network.probabilities(features) for features in lift.features)
        last = np.flatnonzero(lift.success[0])[-1]
        assert own[0] < 0.1
        assert own[last] > 0.5  # from three episodes
        assert other[last] < 0.1


def test_nothing_to_tell_apart_is_said(network: SuccessNetwork) -> None:
    nothing = LabelledEpisode(
        "lift", ("a", "b"), np.zeros((2, 4, len(network.mean)), np.float32), np.zeros((2, 4), bool)
    )
    with pytest.raises(VolarError, match="0 of 8 steps are successes"):
        fit(network, [nothing], [nothing], 0)


def test_a_scene_that_cannot_be_run_is_left_out(tmp_path: Path) -> None:
    wanted = [Wanted(TRAINING, "lift", 0), Wanted(TRAINING, "lift", 1)]
    for item, steps in zip(wanted, (0, 3), strict=True):
        found = LabelledEpisode("lift", ("a", "b"), np.zeros((2, steps, 4), np.float32), np.zeros((2, steps), bool))
        write_episode(tmp_path / item.name, found)
    assert [len(found.success[0]) for found in read_episodes(tmp_path, wanted)] == [3]


def test_help_is_light(tmp_path: Path) -> None:
    code = (
        "import sys; from volar.rl.success_classifier import main; sys.argv = ['x', '--help']; assert main() == 0; "
        "assert not {'torch', 'mujoco', 'lerobot'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "tasks" in done.stdout
