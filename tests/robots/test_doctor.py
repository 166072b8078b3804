"""The report names what is wrong and how to repair it; what works is found to work."""

import re
from pathlib import Path

import numpy as np
import pytest

from volar.robots import doctor
from volar.robots.errors import VolarError


def test_this_machine_renders_and_runs_onnx() -> None:
    for check in (doctor.check_onnxruntime(), doctor.check_lerobot(), doctor.check_python()):
        assert check.status == "ok", check
    check = doctor.check_renderer()
    assert check.status == ("optional" if "beside a GPU" in check.found else "ok"), check


def test_the_rate_of_a_simulated_camera_is_measured() -> None:
    found = doctor.check_renderer().found
    rates = re.findall(r"(\d+) frames/s at (\d+x\d+)", found)
    assert [size for _, size in rates] == ["96x96", "512x512"]
    if "llvmpipe" in found:  # to a GPU 28 times the pixels are as nothing
        assert int(rates[0][0]) > int(rates[1][0]) > 0


def test_no_driver_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "no-such-backend")
    check = doctor.check_renderer()
    assert check.status == "broken"
    assert "libegl1" in check.fix


def test_lateness_is_measured_on_a_fixed_grid() -> None:
    now = 5.0

    def sleep(seconds: float) -> None:  # a machine that wakes every sleeper 1 ms late
        nonlocal now
        now += seconds + 1e-3

    late_ms = doctor.timer_errors_ms(50, lambda: now, sleep)
    np.testing.assert_allclose(late_ms, 1.0, atol=1e-6)  # errors do not add up


def test_a_broken_artifact_fails_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "artifact.json").write_text("{")
    check = doctor.check_artifact(tmp_path)
    assert check.status == "broken"
    assert "artifact.json" in check.found
    assert "volar-export" in check.fix


def test_a_wrong_path_is_said_before_anything_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    monkeypatch.setattr(doctor, "checks", lambda config: looked.append("machine") or [])
    monkeypatch.setattr(doctor, "check_robot", lambda config, words: looked.append("robot") or [])
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "config.json").write_text('{"type": "volar"}')
    for name, says in (("nowhere", "no policy at .*nowhere: no such folder"), ("policy", "volar-export policy=")):
        with pytest.raises(VolarError, match=says):
            doctor.examine(doctor.DoctorConfig(tmp_path / name))
        assert looked == []
    (tmp_path / "policy" / "artifact.json").write_text("{")
    doctor.examine(doctor.DoctorConfig(tmp_path / "policy"))
    assert looked == ["robot", "machine"]


def test_the_report_ends_with_the_verdict(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    checks = [lambda: doctor.Check("a", "ok", "fine [0]"), lambda: doctor.Check("b", "optional", "absent", "get it")]
    monkeypatch.setattr(doctor, "checks", lambda config: checks)
    assert doctor.examine(doctor.DoctorConfig()) == 0
    checks.append(lambda: doctor.Check("c", "broken", "gone", "repair it"))
    assert doctor.examine(doctor.DoctorConfig()) == 1
    said = capsys.readouterr().out
    assert "fine [0]" in said
    assert "broken: c" in said
