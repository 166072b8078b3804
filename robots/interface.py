"""What passes between a body and a policy: observations in, action chunks out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from volar.robots.contract import PolicyContract


@dataclass(frozen=True)
class Observation:
    """One look at the world.

    `images`: camera name -> uint8 (H, W, 3), RGB. `state`: float32 (S,), the names and units are the
    contract's `state_names`, `state_units`. `stamp_ns`: capture time on the control loop's clock [ns].
    Raises `ValueError` on a wrong dtype or shape, or a non-finite state.
    """

    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    instruction: str
    stamp_ns: int

    def __post_init__(self) -> None:
        for name, image in self.images.items():
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(f"image {name!r} must be uint8 (H, W, 3), is {image.dtype} {image.shape}")
        if self.state.dtype != np.float32 or self.state.ndim != 1:
            raise ValueError(f"state must be float32 (S,), is {self.state.dtype} {self.state.shape}")
        if not np.isfinite(self.state).all():
            raise ValueError(f"state holds a non-finite value: {self.state}")


@dataclass(frozen=True)
class ActionChunk:
    """A policy's answer to one observation.

    `actions`: float32 (H, A) in physical units, meaning as in `ActionSpec`; `actions[i]` holds during
    [stamp + i dt, stamp + (i + 1) dt). `stamp_ns`: the stamp of the observation it answers [ns].
    Raises `ValueError` on a wrong dtype, shape or `dt_s`. Non-finite actions are allowed here, since a
    policy can produce them; `ChunkBuffer` refuses them.
    """

    actions: NDArray[np.float32]
    stamp_ns: int
    dt_s: float

    def __post_init__(self) -> None:
        if self.actions.dtype != np.float32 or self.actions.ndim != 2:
            raise ValueError(f"actions must be float32 (H, A), is {self.actions.dtype} {self.actions.shape}")
        if not self.dt_s > 0:
            raise ValueError(f"dt_s must be positive, is {self.dt_s}")


@dataclass(frozen=True)
class ActionPrefix:
    """What the arm will do from an observation's stamp on if nothing new comes: `actions` float32 (R, A), one each
    `dt_s` of the chunk that answers it; the first `frozen` of them are executed whatever that chunk says."""

    actions: NDArray[np.float32]
    frozen: int


@runtime_checkable
class Policy(Protocol):
    """Anything that maps observations to action chunks under a contract."""

    @property
    def contract(self) -> "PolicyContract": ...

    def reset(self, seed: int) -> None: ...

    def predict(self, observation: Observation) -> ActionChunk: ...


@runtime_checkable
class PrefixPolicy(Policy, Protocol):
    """A policy whose chunks continue from what is being executed meanwhile (real-time chunking)."""

    def predict_after(self, observation: Observation, prefix: ActionPrefix) -> ActionChunk: ...
