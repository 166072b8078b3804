"""The VLA as a Stable-Baselines3 policy: an action is the tokens of one chunk, as far as it is executed.

One decision chooses `execute_steps` x A tokens; each is a categorical over 256 bins, so log-probability, entropy and
divergence are sums over tokens. What the deployed policy does is unchanged: the most probable bin, without exploration.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from volar.datasets.normalizer import Normalizer
from volar.rl.exploration import Exploration
from volar.robots.contract import PolicyContract
from volar.vla.action_tokenizers.uniform_bins import BINS
from volar.vla.adapters import is_frozen
from volar.vla.heads import POINTS
from volar.vla.modeling_volar import Seen, Trunk, VolarModel, pixels_from_images
from volar.vla.processor_volar import StateScaler

PRIVILEGED = "privileged"  # what only the critic sees
_CRITIC_WIDTH = 128

Batch = dict[str, Tensor]
AnyBatch = Tensor | Batch  # what SB3 calls an observation; here it is always a dict


class TokenPolicy(ActorCriticPolicy):
    """`VolarModel` with a critic, for observations in one of three forms.

    Raw: one uint8 image (B, H, W, 3) for each camera, `state` (B, S) in physical units, `input_ids` (B, T). Where
    vision and connector are frozen, what `sight` made of the images may stand for them. Or, where the whole trunk is
    frozen and was computed before: `queries` (B, H, D), `scaled_points` (B, 2, 3), `state` as above.
    `privileged` (B, P), where the space has it, is what the critic sees (an asymmetric critic: Pinto et al., RSS 2018);
    else it sees the mean of the queries, detached. `trains`: `head`, the action head alone, or `all` but what is frozen
    in `model`. Tokens are bins in rising order, (B, E, A). Dimensions that decode to one value whatever the token count
    nowhere. `precision`: `no`, or `bf16` for the trunk; the head, whose probabilities are compared, stays in float32.
    """

    kernel: Tensor
    free: Tensor

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.MultiDiscrete,
        lr_schedule: Callable[[float], float],
        *,
        model: VolarModel,
        contract: PolicyContract,
        exploration: Exploration | None = None,
        trains: str = "head",
        precision: str = "no",
        use_sde: bool = False,
    ) -> None:
        if use_sde:
            raise ValueError("use_sde is for Gaussian policies; tokens have an exploration of their own")
        if trains not in ("head", "all"):
            raise ValueError(f"trains={trains!r} is neither head nor all")
        self._contract, self.critic_sees_state = contract, PRIVILEGED in observation_space.spaces
        self.executed = contract.execute_steps  # E
        self.trains, self.fast = trains, precision == "bf16"
        super().__init__(observation_space, action_space, lr_schedule, net_arch=[])
        self.vla, self.state_scaler = model, StateScaler(contract)
        for name, parameter in model.named_parameters():
            learns = name.startswith("action_head.") or (trains == "all" and parameter.requires_grad)
            parameter.requires_grad_(learns)
        self.sees_alike = is_frozen(model.backbone, "vision", "connector")  # the same in the same image, for good
        self.exploration, self.width = exploration or Exploration(1.0, 0.0, 0.0), 0.0
        kernel = torch.eye(BINS).repeat(contract.action.size, 1, 1)  # (A, 256, 256)
        self.register_buffer("kernel", kernel, persistent=False)
        self.widen(1.0)
        self.register_buffer("free", torch.as_tensor(free_dimensions(contract)), persistent=False)  # (A,)
        seen = spaces.flatdim(observation_space[PRIVILEGED]) if self.critic_sees_state else model.backbone.width  # F
        self.critic = nn.Sequential(
            nn.Linear(seen, _CRITIC_WIDTH), nn.Tanh(), nn.Linear(_CRITIC_WIDTH, _CRITIC_WIDTH), nn.Tanh()
        )
        self.critic.append(nn.Linear(_CRITIC_WIDTH, 1))
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(trainable, lr=lr_schedule(1), eps=1e-5)

    def _build(self, lr_schedule: Callable[[float], float]) -> None:
        """Nothing of SB3's own networks."""

    def widen(self, width: float) -> None:
        """Makes what is tried out `width` times as wide as `exploration` says, from now on."""
        if width != self.width:
            self.width = width
            self.kernel[: arm_dimensions(self._contract)] = self.exploration.kernel(width)

    @property
    def actor_parameters(self) -> list[nn.Parameter]:
        """Those of the VLA that train."""
        return [parameter for parameter in self.vla.parameters() if parameter.requires_grad]

    def trunk(self, obs: Batch, vla: VolarModel | None = None) -> Trunk:
        """What precedes the action head, of raw observations; no gradients where the trunk is frozen."""
        learns, state = self.trains == "all" and torch.is_grad_enabled(), self.state_scaler(obs["state"])
        with torch.set_grad_enabled(learns), torch.autocast(state.device.type, torch.bfloat16, enabled=self.fast):
            return (vla or self.vla).trunk(self._images(obs), obs["input_ids"].long(), state)

    @torch.no_grad()
    def sight(self, obs: Batch) -> Batch:
        """A raw observation with features in the place of images: `CAMERA.LAYER`, each (B, tokens, D)."""
        names = [camera.name for camera in self._contract.cameras]
        views = self.vla.see(self._pixels(obs))
        features = {f"{name}.{i}": f for name, view in zip(names, views, strict=True) for i, f in enumerate(view)}
        return features | {key: value for key, value in obs.items() if key not in names}

    def _images(self, obs: Batch) -> Seen:
        """What the network sees of the cameras: features if they are there, else pixels."""
        names = [camera.name for camera in self._contract.cameras]
        if f"{names[0]}.0" not in obs:
            return self._pixels(obs)
        return [[obs[key] for key in sorted(obs) if key.startswith(f"{name}.")] for name in names]

    def _pixels(self, obs: Batch) -> Tensor:
        # With further axes of one, as SB3 needs them not to take the images for channels first.
        images = {c.name: obs[c.name].reshape(-1, c.height, c.width, 3) for c in self._contract.cameras}
        return pixels_from_images(images, self.vla.config.backbone)

    def seen(self, obs: Batch, vla: VolarModel | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """What the action head sees: queries (B, H, D), scaled points (B, 2, 3), normalized state (B, S)."""
        state = self.state_scaler(obs["state"])
        if "queries" in obs:
            return obs["queries"], obs["scaled_points"], state
        trunk = self.trunk(obs, vla)
        return trunk.queries, trunk.scaled_points, state

    def log_probabilities(self, obs: Batch, vla: VolarModel | None = None) -> Tensor:
        """Of every token: (B, E, A, 256), exploration included. `vla`: another network, such as the reference."""
        return self.of_head(*self.seen(obs, vla), vla)

    def of_head(self, queries: Tensor, points: Tensor, state: Tensor, vla: VolarModel | None = None) -> Tensor:
        """As `log_probabilities`, from what `seen` returns."""
        logits = (vla or self.vla).action_head(queries[:, : self.executed], points, state)  # (B, E, A, 256)
        return self.explored(logits)

    def explored(self, logits: Tensor) -> Tensor:
        """Log-probabilities of the tokens that are tried out, (..., A, 256), from the network's logits."""
        plain: Tensor = (logits / self.exploration.temperature).log_softmax(-1)
        if self.exploration.kernel_bins == 0:
            return plain
        wide = torch.einsum("...ab,abc->...ac", plain.exp(), self.kernel)
        return (wide + 1e-10).log()

    @torch.no_grad()
    def critic_inputs(self, obs: Batch) -> Tensor:
        """What the critic sees, (B, F): F is P with `privileged`, else D."""
        return obs[PRIVILEGED].float() if self.critic_sees_state else pooled(self.seen(obs)[0])

    def values_of(self, inputs: Tensor) -> Tensor:
        """(B, F), see `critic_inputs`, to values (B,)."""
        values: Tensor = self.critic(inputs)[:, 0]
        return values

    def values(self, obs: Batch) -> Tensor:
        """(B,)"""
        return self.values_of(self.critic_inputs(obs))

    # --- Stable-Baselines3's interface; an action is (B, E * A) bins

    def forward(self, obs: AnyBatch, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        assert isinstance(obs, dict)
        logp = self.log_probabilities(obs)
        tokens = self._choose(logp, deterministic)
        return tokens.flatten(1), self.values(obs)[:, None], self._of(logp, tokens)

    def evaluate_actions(self, obs: AnyBatch, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values (B, 1), log-probabilities (B,) and entropies (B,) of actions (B, E * A)."""
        assert isinstance(obs, dict)
        logp = self.log_probabilities(obs)
        tokens = actions.long().reshape(logp.shape[:-1])
        entropy = (-(logp.exp() * logp).sum(-1) * self.free).sum((-1, -2))
        return self.values(obs)[:, None], self._of(logp, tokens), entropy

    def predict_values(self, obs: AnyBatch) -> Tensor:
        assert isinstance(obs, dict)
        return self.values(obs)[:, None]

    def _predict(self, observation: AnyBatch, deterministic: bool = False) -> Tensor:
        assert isinstance(observation, dict)
        return self._choose(self.log_probabilities(observation), deterministic).flatten(1)

    def _choose(self, logp: Tensor, deterministic: bool) -> Tensor:
        if deterministic:
            return logp.argmax(-1)
        return torch.multinomial(logp.exp().flatten(0, -2), 1).reshape(logp.shape[:-1])

    def _of(self, logp: Tensor, tokens: Tensor) -> Tensor:
        return (logp.gather(-1, tokens[..., None])[..., 0] * self.free).sum((-1, -2))


def pooled(queries: Tensor) -> Tensor:
    """Hidden states of the action queries (B, H, D) -> their mean (B, D), through which nothing is learned."""
    return queries.detach().mean(1)


def arm_dimensions(contract: PolicyContract) -> int:
    """Leading action dimensions that are not the gripper."""
    return contract.action.size - (contract.action.gripper != "none")


def free_dimensions(contract: PolicyContract) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(A,) True where a token makes a difference: not where every demonstration had the same value."""
    return ~Normalizer.of_contract(contract, "action").constant


def token_spaces(model: VolarModel, contract: PolicyContract, privileged: int) -> tuple[spaces.Dict, Any]:
    """Observation space of the second form, with `privileged` numbers if any, and action space of a `TokenPolicy`."""
    shapes = {
        "queries": (contract.chunk_length, model.backbone.width),
        "scaled_points": (POINTS, 3),
        "state": (len(contract.state_names),),
    }
    if privileged:
        shapes[PRIVILEGED] = (privileged,)
    boxes: dict[str, spaces.Space[Any]] = {
        name: spaces.Box(-np.inf, np.inf, shape, np.float32) for name, shape in shapes.items()
    }
    tokens = contract.execute_steps * contract.action.size
    return spaces.Dict(boxes), spaces.MultiDiscrete([BINS] * tokens)


def token_policy(
    model: VolarModel,
    contract: PolicyContract,
    *,
    privileged: int = 0,
    exploration: Exploration | None = None,
    trains: str = "head",
    precision: str = "no",
    learning_rate: float = 1e-4,
) -> TokenPolicy:
    """A policy around a network, for the learners of this folder."""
    observation, action = token_spaces(model, contract, privileged)
    return TokenPolicy(
        observation,
        action,
        lambda _: learning_rate,
        model=model,
        contract=contract,
        exploration=exploration,
        trains=trains,
        precision=precision,
    )
