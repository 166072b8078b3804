"""The policy in its own process: answers, failures, crashes, and nothing left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from volar.robots.contract import ContractError
from volar.robots.exported_policy import ExportedPolicy
from volar.robots.interface import ActionChunk
from volar.robots.policies import PolicyNotFound
from volar.robots.policy_process import PolicyProcess, PolicyProcessError

if TYPE_CHECKING:
    from .conftest import TinyArtifact

pytestmark = pytest.mark.real_time


@pytest.fixture
def process(artifact: "TinyArtifact") -> Iterator[PolicyProcess]:
    with PolicyProcess(artifact.path, max_restarts=1) as running:
        yield running


def until(process: PolicyProcess, done: Callable[[], bool]) -> ActionChunk | None:
    """Polls until `done`; returns the chunk that came. What hangs ends after a minute."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        chunk = process.poll(0)
        if chunk is not None or done():
            return chunk
        time.sleep(0.001)  # leaves the core to the other process; no result depends on it
    raise AssertionError(f"no answer: {process.status}")


def test_answers_are_those_of_the_artifact(artifact: "TinyArtifact", process: PolicyProcess) -> None:
    here = ExportedPolicy(artifact.path)
    assert process.contract == here.contract
    for i in range(5):
        observation = artifact.observation(stamp_ns=i, x_m=0.4 + 0.01 * i)
        assert not process.pending
        process.submit(observation)
        assert process.pending
        chunk = until(process, lambda: False)
        assert chunk is not None
        assert chunk.stamp_ns == i
        assert not process.pending
        np.testing.assert_array_equal(chunk.actions, here.predict(observation).actions)
        assert process.poll(0) is None
    assert process.status.predict_s is not None
    assert process.status.predict_s > 0


def test_chunks_own_their_memory(artifact: "TinyArtifact", process: PolicyProcess) -> None:
    process.submit(artifact.observation(x_m=0.4))
    first = until(process, lambda: False)
    assert first is not None
    kept = first.actions.copy()
    process.submit(artifact.observation(x_m=0.6))
    until(process, lambda: False)
    np.testing.assert_array_equal(first.actions, kept)


def test_misfits_raise_here_and_failures_there_are_reported(artifact: "TinyArtifact", process: PolicyProcess) -> None:
    with pytest.raises(ContractError, match="found front 8x8"):
        process.submit(artifact.observation(pixels=8))
    with pytest.raises(ContractError, match="instruction has 2000 bytes"):
        process.submit(artifact.observation("x" * 2000))
    process.submit(artifact.observation("lift " * 20))
    assert until(process, lambda: not process.pending) is None
    assert "has 20 words" in str(process.error)
    process.submit(artifact.observation())
    assert until(process, lambda: False) is not None


def test_reset_drops_the_awaited_chunk(artifact: "TinyArtifact", process: PolicyProcess) -> None:
    process.submit(artifact.observation(stamp_ns=1))
    process.reset()
    assert until(process, lambda: not process.pending) is None
    process.submit(artifact.observation(stamp_ns=2))
    chunk = until(process, lambda: False)
    assert chunk is not None
    assert chunk.stamp_ns == 2


def test_a_crash_is_replaced_once_and_then_held(artifact: "TinyArtifact", process: PolicyProcess) -> None:
    first = process.status.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    until(process, lambda: process.status.restarts == 1 and not process.pending)
    assert process.status.pid not in (None, first)
    assert f"{first} died" in str(process.error)
    process.submit(artifact.observation(stamp_ns=7))
    chunk = until(process, lambda: False)
    assert chunk is not None
    assert chunk.stamp_ns == 7
    second = process.status.pid
    assert second is not None
    assert process.failure is None
    os.kill(second, signal.SIGKILL)
    until(process, lambda: process.status.state == "failed")
    assert process.failure == f"the policy process {second} died"
    assert process.pending
    assert process.poll(0) is None


@pytest.mark.parametrize("change", ["another artifact", "another contract", "gone"])
def test_a_policy_replaced_in_its_folder_is_not_run_after_a_crash(
    artifact: "TinyArtifact", process: PolicyProcess, change: str
) -> None:
    """Neither a whole artifact nor a contract that the shared memory has no room for."""
    if change == "another artifact":
        (artifact.path / "README.md").write_text("# A policy trained on\n")
        artifact.rehash()
    elif change == "another contract":
        replace(artifact.contract(), chunk_length=4096).save(artifact.path / "contract.json")
    else:
        artifact.path.rename(artifact.path.with_name("elsewhere"))
    pid = process.status.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert until(process, lambda: process.status.state == "failed") is None
    assert process.restarts == 1
    assert process.failure is not None
    assert "artifact no longer holds the policy that was started" in process.failure


def test_the_loop_does_not_wait_for_a_process_that_does_not_leave(artifact: "TinyArtifact") -> None:
    with PolicyProcess(artifact.path, max_restarts=0, verify=False) as process:
        pid, child = process.status.pid, process._child
        assert pid is not None
        assert child is not None
        os.kill(pid, signal.SIGSTOP)  # it neither answers nor leaves, and is killed two seconds later
        child.socket.shutdown(socket.SHUT_RDWR)
        assert process.poll(0) is None
        assert process.failure == f"the policy process {pid} died"
        os.kill(pid, 0)  # still there: nobody has waited for its end
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_bad_artifact_gives_its_reason(artifact: "TinyArtifact", tmp_path: Path) -> None:
    (artifact.path / "README.md").write_text("edited")
    with pytest.raises(PolicyProcessError, match=r"hash: README\.md"):
        PolicyProcess(artifact.path)
    with pytest.raises(PolicyNotFound, match="volar-export leaves"):
        PolicyProcess(tmp_path / "nothing")


def test_close_ends_the_process(artifact: "TinyArtifact") -> None:
    process = PolicyProcess(artifact.path, verify=False)
    pid = process.status.pid
    assert pid is not None
    process.submit(artifact.observation())
    process.close()
    process.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert process.pending
    assert process.poll(0) is None


def test_the_child_leaves_with_its_parent(artifact: "TinyArtifact") -> None:
    """Killed with SIGKILL, the parent cleans up nothing; the child ends by itself, nobody complains."""
    code = (
        "import os, signal, sys; from pathlib import Path; from volar.robots.policy_process import PolicyProcess;"
        "print(PolicyProcess(Path(sys.argv[1])).status.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    parent = subprocess.run(
        [sys.executable, "-c", code, str(artifact.path)], capture_output=True, text=True, check=False
    )
    # What ONNX Runtime remarks about a machine's devices is no complaint.
    assert [line for line in parent.stderr.splitlines() if "onnxruntime" not in line] == []
    child, deadline = Path(f"/proc/{int(parent.stdout)}"), time.monotonic() + 60
    while child.exists() and "Z" not in (child / "stat").read_text().split()[2] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not child.exists() or "Z" in (child / "stat").read_text().split()[2]
