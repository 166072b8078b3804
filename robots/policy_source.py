"""Where the control loop's chunks come from, by what the user typed: one name for every kind of policy."""

from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from volar.robots.body import ChunkSource
from volar.robots.contract import PolicyContract
from volar.robots.errors import VolarError
from volar.robots.policies import ARTIFACT_FILE, LEROBOT, find_policy

LEROBOT_START_S = 300.0  # a policy of billions of weights, read from disk by torch


class PolicySource(ChunkSource, Protocol):
    """A running policy, out of the control loop's way; a context manager.

    `contract`: what the loop and the body must agree with. `failure`: why no chunk will ever come any more, None while
    one may. `error`: the latest reason why there was no chunk, None so far; it stays when others come. `restarts`: how
    often it had to be started, or connected to, again. `predict_s`: how long the latest inference took [s].
    """

    contract: PolicyContract

    @property
    def failure(self) -> str | None: ...

    @property
    def error(self) -> str | None: ...

    @property
    def restarts(self) -> int: ...

    @property
    def predict_s(self) -> float | None: ...

    def reset(self, seed: int = 0) -> None:
        """Drops the chunk still awaited."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_source(policy: str) -> PolicySource:
    """Starts the policy that a verb or the ROS 2 node was given.

    `policy`: the folder of an exported artifact, or `lerobot:` and that of a LeRobot policy; either runs in a process
    of its own. Or the address of a policy server, `ws://HOST:PORT`. Raises `VolarError` naming what is wrong with it.
    """
    from volar.robots.policy_process import PolicyProcess
    from volar.robots.remote_connection import SCHEMES
    from volar.robots.remote_policy import RemotePolicy

    if policy.startswith(SCHEMES):
        return RemotePolicy(policy)

    if policy.startswith(LEROBOT):
        return PolicyProcess(Path(policy), start_timeout_s=LEROBOT_START_S)
    return PolicyProcess(artifact_folder(policy))


def artifact_folder(policy: str) -> Path:
    """The folder of an exported artifact. Raises `VolarError` for a policy directory, which no robot runs."""
    folder = find_policy(Path(policy))
    if not (folder / ARTIFACT_FILE).is_file():
        raise VolarError(
            f"{policy} is a policy directory; a robot runs an exported artifact: volar-export policy={policy} "
            "output=runs/artifact, then policy=runs/artifact"
        )
    return folder
