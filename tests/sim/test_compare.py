"""Two evaluations of the same episodes: who is better is said only where it is known, and only if they are the same."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from volar.robots.contract import PolicyContract
from volar.robots.errors import UsageError, VolarError
from volar.sim import compare as verb
from volar.sim.compare import CompareConfig, compare_evaluations
from volar.sim.comparison import judge, names_of, sentence
from volar.sim.evaluate import EvaluateConfig, evaluate
from volar.sim.paired_test import Pairs


def results(outcomes: dict[str, list[bool]], **other: Any) -> dict[str, Any]:
    """As results.json, of an evaluation with these outcomes."""
    episodes = [
        {"task": task, "index": i, "seed": 100 + i, "success": found, "valid": True, "broken": False,
         "start_sha256": f"{task}{i}"}
        for task, all_found in outcomes.items()
        for i, found in enumerate(all_found)
    ]  # fmt: skip
    tasks = {task: {"episodes": len(found), "invalid": 0} for task, found in outcomes.items()}
    facts = {
        "policy": "p",
        "policy_sha256": "f" * 64,
        "suite": "tabletop",
        "robot": "fr3",
        "seed": 0,
        "max_steps": None,
        "latency_ms": 20.0,
    }
    facts |= {"randomization": "none", "stop": "never", "versions": {"volar": "0.1.0", "mujoco": "4.0"}, "overall": {}}
    return {**facts, "tasks": tasks, "episodes": episodes, **other}


def save(folder: Path, found: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(found))
    return folder


def outcomes(rate: float, count: int, seed: int) -> list[bool]:
    return (np.random.default_rng(seed).random(count) < rate).tolist()


def test_a_clearly_better_policy_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = {"reach": outcomes(0.9, 100, 0), "lift": outcomes(0.3, 100, 1)}
    better = {
        "reach": base["reach"],
        "lift": [a or b for a, b in zip(base["lift"], outcomes(0.4, 100, 2), strict=True)],
    }
    folders = save(tmp_path / "base", results(base)), save(tmp_path / "better", results(better))
    found = compare_evaluations(CompareConfig(folders, output=tmp_path / "out"))
    (comparison,) = found["comparisons"]
    assert comparison["overall"]["better"] == comparison["tasks"]["lift"]["better"] == "b"
    assert comparison["overall"]["more_episodes"] == 0
    assert comparison["overall"]["difference"] == pytest.approx((sum(better["lift"]) - sum(base["lift"])) / 200)
    low, high = comparison["overall"]["interval"]
    assert 0 < low < comparison["overall"]["difference"] < high
    assert comparison["tasks"]["reach"]["p"] == 1.0
    assert comparison["tasks"]["reach"]["better"] is None
    said = capsys.readouterr().out
    assert "better is better than base, with more than 99.9 % confidence" in said
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == found
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "b is better" in page
    assert "http" not in page


def test_how_evaluations_were_made_does_not_decide_whether_they_compare(tmp_path: Path) -> None:
    found = {"lift": outcomes(0.4, 60, 3)}
    made = [
        {"command": f"volar-evaluate output={name}", "date": f"2026-01-0{i}", "machine": {"cpus": i}, "time": {}}
        for i, name in enumerate("ab", 1)
    ]
    gap = {"overall": {"episodes": 60, "difference": 0.4, "interval": [0.2, 0.5]}, "tasks": {}}
    folders = [
        save(tmp_path / name, results(found, made=how, grounding_gap=gap)) for name, how in zip("ab", made, strict=True)
    ]
    old = save(tmp_path / "old", results(found))  # of before it was kept, and gaps were
    both = compare_evaluations(CompareConfig((*folders, old), output=tmp_path / "out"))["comparisons"]
    assert [comparison["overall"]["difference"] for comparison in both] == [0.0, 0.0]


def test_the_order_of_the_evaluations_only_changes_the_sign(tmp_path: Path) -> None:
    one, two = results({"lift": outcomes(0.4, 60, 3)}), results({"lift": outcomes(0.7, 60, 4)})
    a, b = save(tmp_path / "a", one), save(tmp_path / "b", two)
    there = compare_evaluations(CompareConfig((a, b), output=tmp_path / "ab"))["comparisons"][0]["overall"]
    back = compare_evaluations(CompareConfig((b, a), output=tmp_path / "ba"))["comparisons"][0]["overall"]
    assert back["p"] == there["p"]
    assert back["difference"] == -there["difference"]
    assert back["interval"] == pytest.approx([-value for value in reversed(there["interval"])])
    assert {there["better"], back["better"]} == {"a", "b"}


def test_what_is_not_settled_says_how_many_more_episodes_would() -> None:
    found = judge(Pairs(both=40, only_a=3, only_b=6, neither=1))
    assert found["better"] is None
    assert found["more_episodes"] > 100
    said = sentence(found, "a", "b")
    assert f"about {50 + found['more_episodes']} under another seed would settle it" in said
    assert f"{found['more_episodes']} more of this one, but a second look errs in more than 5 %" in said
    worse = judge(Pairs(both=40, only_a=12, only_b=1, neither=7))
    assert "old is better than new" in sentence(worse, "old", "new")
    assert "(86.7% against 68.3% in 60 episodes; difference +18.3 points" in sentence(worse, "old", "new")
    equal = judge(Pairs(both=40, only_a=4, only_b=4, neither=2))
    assert equal["more_episodes"] is None
    assert "20000 would not" in sentence(equal, "a", "b")


def test_several_evaluations_are_each_compared_with_the_first(tmp_path: Path) -> None:
    rates = {"a": 0.4, "b": 0.45, "c": 0.9}
    folders = [save(tmp_path / n, results({"lift": outcomes(r, 80, i)})) for i, (n, r) in enumerate(rates.items())]
    found = compare_evaluations(CompareConfig(tuple(folders), output=tmp_path / "out"))["comparisons"]
    assert [(c["a"], c["b"]) for c in found] == [("a", "b"), ("a", "c")]
    assert all(c["overall"]["p_holm"] >= c["overall"]["p"] for c in found)
    assert found[1]["overall"]["p_holm"] == pytest.approx(2 * found[1]["overall"]["p"])
    assert [c["overall"]["better"] for c in found] == [None, "b"]


def test_what_only_one_of_several_tests_would_find_is_not_settled() -> None:
    pairs = Pairs(both=20, only_a=1, only_b=9, neither=20)  # p = 0.021
    alone, among_five = judge(pairs), judge(pairs, p_holm=5 * 0.0215, tests=5)
    assert (alone["better"], alone["more_episodes"]) == ("b", 0)
    assert among_five["better"] is None
    assert among_five["more_episodes"] > 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": 1}, "seed 0 and 1"),
        ({"robot": "ur5e", "randomization": "full"}, "robot fr3 and ur5e; randomization none and full"),
        ({"max_steps": 5}, "max_steps None and 5; run one again with the other's settings"),
        ({"latency_ms": 120.0}, "a and b did not run the same episodes: latency_ms 20.0 and 120.0; run one again"),
        ({"stop": "sequential"}, "stop=never resume=true"),
    ],
)
def test_evaluations_of_other_episodes_are_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    plain = {"lift": [True, False, True]}
    folders = save(tmp_path / "a", results(plain)), save(tmp_path / "b", results(plain, **changes))
    with pytest.raises(VolarError, match=says):
        compare_evaluations(CompareConfig(folders, output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_files_of_terms_are_compared_by_content_where_both_say_so(tmp_path: Path) -> None:
    plain = {"lift": [True, False, True]}
    a, b = (results(plain, randomization="my.yaml", randomization_fingerprint=f"my.yaml {text}") for text in "ab")
    first, other = save(tmp_path / "a", a), save(tmp_path / "b", b)
    with pytest.raises(VolarError, match=r"randomization_fingerprint my\.yaml a and my\.yaml b"):
        compare_evaluations(CompareConfig((first, other), output=tmp_path / "out"))
    older = save(tmp_path / "older", results(plain, randomization="my.yaml"))
    compare_evaluations(CompareConfig((first, older), output=tmp_path / "out"))


def test_other_versions_are_compared_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = {"lift": [True, False, True]}
    old = results(plain, versions={"volar": "0.1.0", "mujoco": "3.9"})
    folders = save(tmp_path / "old", old), save(tmp_path / "new", results(plain)), save(tmp_path / "same", old)
    compare_evaluations(CompareConfig(folders, output=tmp_path / "out"))
    said = "note: old ran with volar 0.1.0, mujoco 3.9, new with volar 0.1.0, mujoco 4.0"
    assert capsys.readouterr().out.count("note: ") == 1
    assert (tmp_path / "out" / "compare.html").read_text().count(said) == 1


def test_other_tasks_other_numbers_and_other_scenes_are_refused(tmp_path: Path) -> None:
    first = save(tmp_path / "a", results({"lift": [True, False]}))
    other = results({"lift": [True, False]})
    other["episodes"][1]["start_sha256"] = "elsewhere"
    for i, (found, says) in enumerate(
        [
            (results({"reach": [True, False]}), "tasks lift and reach"),
            (results({"lift": [True, False, True]}), "episodes 2 and 3"),
            (other, "did not start episode 1 of lift in the same scene"),
        ]
    ):
        with pytest.raises(VolarError, match=says):
            compare_evaluations(CompareConfig((first, save(tmp_path / f"b{i}", found)), output=tmp_path / "out"))


def test_invalid_seeds_are_in_no_pair_and_broken_episodes_are_failures(tmp_path: Path) -> None:
    pair = results({"lift": [True] * 4}), results({"lift": [True] * 4})
    for found in pair:
        found["episodes"][0] |= {"valid": False, "success": False}
    pair[1]["episodes"][1] |= {"broken": True, "success": False, "start_sha256": ""}  # the worker died of it
    folders = tuple(save(tmp_path / name, found) for name, found in zip("ab", pair, strict=True))
    overall = compare_evaluations(CompareConfig(folders, output=tmp_path / "out"))["comparisons"][0]["overall"]
    assert (overall["episodes"], overall["only_a"], overall["both"]) == (3, 1, 2)


def test_the_command_line_takes_any_number_of_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = [save(tmp_path / name, results({"lift": [True, False]})) for name in ("it's", "b, c", "d")]
    words = [*map(str, odd), f"output={tmp_path / 'out'}"]
    assert verb.main(words) == 0
    assert "it's" in capsys.readouterr().out
    assert verb.main(words) == 1
    assert "holds a comparison; give another output=, or overwrite=true" in capsys.readouterr().err
    assert verb.main([*words, "overwrite=true"]) == 0
    capsys.readouterr()
    assert verb.main([str(odd[0])]) == 2
    assert "two evaluations or more" in capsys.readouterr().err
    assert verb.main([str(odd[0]), str(tmp_path / "nowhere")]) == 1
    assert "no results.json at" in capsys.readouterr().err
    assert verb.main(["--help"]) == 0
    assert "McNemar" in capsys.readouterr().out


def test_one_evaluation_is_not_compared(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two evaluations or more"):
        compare_evaluations(CompareConfig((tmp_path,)))


def test_short_names_tell_evaluations_apart() -> None:
    assert names_of([Path("runs/a/evaluation"), Path("runs/b/evaluation")]) == ["a/evaluation", "b/evaluation"]
    assert names_of([Path("x"), Path("y/results.json")]) == ["x", "y"]
    assert len(set(names_of([Path("x"), Path("x")]))) == 2


def test_real_evaluations_of_two_policies_are_paired(artifact_folder: Path, tmp_path: Path) -> None:
    """The same network, asked after every fourth action or after each: other commands, the same scenes."""
    often = tmp_path / "policy"
    shutil.copytree(artifact_folder, often)
    contract = replace(PolicyContract.load(often / "contract.json"), execute_steps=1)
    contract.save(often / "contract.json")
    manifest = json.loads((often / "artifact.json").read_text())
    manifest["contract_sha256"] = contract.sha256
    manifest["files"]["contract.json"] = hashlib.sha256((often / "contract.json").read_bytes()).hexdigest()
    (often / "artifact.json").write_text(json.dumps(manifest))
    plain = {"tasks": ("reach",), "episodes": 3, "videos": 0, "workers": 1, "wrong_instruction": False}
    folders = tmp_path / "seldom", tmp_path / "often"
    for policy, output in zip((artifact_folder, often), folders, strict=True):
        evaluate(EvaluateConfig(policy=policy, output=output, **plain))  # type: ignore[arg-type]
    found = compare_evaluations(CompareConfig(folders, output=tmp_path / "out"))
    assert found["comparisons"][0]["overall"]["episodes"] == 3
    assert found["latency_ms"] == 20.0
