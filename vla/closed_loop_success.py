"""Success in closed loop while training: `volar-evaluate`, another process, on the checkpoint of the moment.

The model does not know the simulator; what it knows is a verb and the results.json that it leaves. The verb is asked
before the first step whether it could (`check=true`). Every evaluation runs the same scenes (the verb's seed), so that
its rates can be compared. It takes the time of the training, which stands still meanwhile.
"""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from volar.robots.errors import VolarError

if TYPE_CHECKING:
    from volar.vla.train import TrainConfig
    from volar.vla.training_run import TrainingRun

FOLDER = "evaluations"


def require_evaluable(config: "TrainConfig", training: "TrainingRun") -> None:
    """Raises `VolarError` when the evaluations that are wanted could not be run: no such task or robot, a policy that
    does not fit it."""
    if config.evaluate_every_steps is None:
        return
    with tempfile.TemporaryDirectory() as folder:  # a policy but for its weights, which nothing depends on yet
        training.bare.config.save(Path(folder) / "config.json")
        training.contract.save(Path(folder) / "contract.json")
        done = _run(config, training, Path(folder), "check=true")
    if done.returncode:
        raise VolarError(f"evaluate_every_steps: {_said(done)}; change that, or leave evaluate_every_steps= away")


@dataclass(frozen=True)
class ClosedLoopSuccess:
    """`every_steps`: how often it is due."""

    training: "TrainingRun"
    every_steps: int

    @staticmethod
    def of(config: "TrainConfig", training: "TrainingRun") -> "ClosedLoopSuccess | None":
        """None where it is not wanted."""
        return None if config.evaluate_every_steps is None else ClosedLoopSuccess(training, config.evaluate_every_steps)

    def measure(self) -> dict[str, Any]:
        """`success/rate`, its Wilson interval and `success/TASK`, of the policy as it is; saves a checkpoint.

        An evaluation that fails is told of and does not end the training. One that a signal to stop cuts short ends it
        (`KeyboardInterrupt`): without a row it is made up for when the run goes on. Called in all processes; the first
        one measures.
        """
        policy, processes = self.training.save(), self.training.processes
        if processes.device.type == "cuda":
            torch.cuda.empty_cache()  # what only lies ready here, the evaluation may need
        found, stopped = dict[str, Any](), False
        if processes.first:
            try:
                found = self._evaluate(policy)
            except KeyboardInterrupt:
                stopped = True
        processes.wait()
        if any(processes.agree(stopped)):
            raise KeyboardInterrupt
        return found

    def _evaluate(self, policy: Path) -> dict[str, Any]:
        config, step = self.training.config, self.training.step
        output = config.output / FOLDER / f"{step:06d}"
        done = _run(config, self.training, policy, f"output={output}", "overwrite=true")
        if done.returncode:
            said = _said(done)
            print(f"step {step} could not be evaluated: {said}", file=sys.stderr, flush=True)
            return {"success/error": said}
        results = json.loads((output / "results.json").read_text())
        overall = results["overall"]
        if not overall["episodes"]:
            print(f"step {step}: no episode could be run", file=sys.stderr, flush=True)
            return {"success/error": "no episode could be run"}
        low, high = overall["wilson95"]
        rates = {f"success/{task}": found["success_rate"] for task, found in results["tasks"].items()}
        print(f"step {step}: success {overall['success_rate']:.1%} [{low:.1%}, {high:.1%}]", flush=True)
        return {
            "success/rate": overall["success_rate"],
            "success/wilson95_low": low,
            "success/wilson95_high": high,
            "success/episodes": overall["episodes"],
            **rates,
        }


def _run(
    config: "TrainConfig", training: "TrainingRun", policy: Path, *words: str
) -> "subprocess.CompletedProcess[str]":
    """The verb with these settings and the training's. Raises `VolarError` when there is no such verb."""
    beside = Path(sys.executable).with_name("volar-evaluate")
    verb = str(beside) if beside.is_file() else shutil.which("volar-evaluate")
    if verb is None:
        raise VolarError("evaluate_every_steps needs the verb volar-evaluate, which is not on the PATH")
    command = [verb, f"policy={policy.resolve()}", f"robot={training.contract.robot}"]
    command += [f"episodes={config.evaluate_episodes}", "wrong_instruction=false", "videos=0"]
    command += [f"tasks={','.join(config.evaluate_tasks)}"] if config.evaluate_tasks else []
    with stopped_at_once():  # which kills the verb
        return subprocess.run([*command, *words], capture_output=True, text=True, check=False)


@contextmanager
def stopped_at_once() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM do what they are to do outside, and raise `KeyboardInterrupt`.

    Ctrl-C reaches the verb as well: what it says then is no result.
    """
    if threading.current_thread() is not threading.main_thread():  # where signals cannot be handled
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            if signal.getsignal(number) is stop:
                signal.signal(number, handler)

    def stop(number: int, frame: Any) -> None:
        restore()
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)  # which may set others
        raise KeyboardInterrupt

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        restore()


def _said(done: "subprocess.CompletedProcess[str]") -> str:
    """The last line of its errors, without the verb's own advice."""
    line = next(reversed(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
    return line.removesuffix(" (volar-evaluate --help lists every setting)")
