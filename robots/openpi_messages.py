"""What an openpi client and server say to each other: observations, actions and metadata as maps under openpi's keys.

Which camera goes under which key follows from the contract: `wrist` is observation/wrist_image, the first other
camera observation/image, any further one observation/NAME_image; the state is observation/state, the instruction
prompt. `preprocessing` entries of the contract say otherwise: "openpi.key.front": "observation/exterior_image_1_left",
"openpi.key.state": "observation/joint_position".

Two volar programs say a little more: the metadata holds the contract (`volar_contract`, its canonical JSON), and a
request the observation's stamp and, after a reset, its seed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from volar.robots.array_msgpack import ArrayMessageError
from volar.robots.contract import ContractError, PolicyContract
from volar.robots.errors import Unknown
from volar.robots.interface import ActionChunk, Observation

CONTRACT: Final = "volar_contract"  # in the metadata
STAMP, SEED = "volar_stamp_ns", "volar_seed"  # in a request
ACTIONS, TIMING, INFER_MS = "actions", "server_timing", "infer_ms"  # in a reply
KEY: Final = "openpi.key."  # before the name of a camera, `state` or `prompt`, in `preprocessing`
STATE, PROMPT, WRIST = "state", "prompt", "wrist"


@dataclass(frozen=True)
class Keys:
    """Under which keys an observation travels. `images`: camera -> key."""

    images: Mapping[str, str]
    state: str
    prompt: str

    @staticmethod
    def of(contract: PolicyContract) -> "Keys":
        """Raises `Unknown` for an entry that names no camera, `ContractError` when two things have one key."""
        names = [camera.name for camera in contract.cameras]
        found = {name: f"observation/{name}_image" for name in names}
        if first := next((name for name in names if name != WRIST), None):
            found[first] = "observation/image"
        found |= {STATE: "observation/state", PROMPT: "prompt"}
        for entry, key in contract.preprocessing.items():
            if entry.startswith(KEY):
                name = entry.removeprefix(KEY)
                if name not in found:
                    raise Unknown(f"entry {entry} of the contract's preprocessing for", name, found)
                found[name] = key
        if len(set(found.values())) < len(names) + 2:
            raise ContractError(f"two parts of an observation would travel under one key: {found}")
        return Keys({name: found[name] for name in names}, found[STATE], found[PROMPT])

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.images.values(), self.state, self.prompt)


def request(keys: Keys, observation: Observation, prompt: str) -> dict[str, Any]:
    """The message for an observation, as any openpi server takes it."""
    images = {key: observation.images[name] for name, key in keys.images.items()}
    return {**images, keys.state: observation.state, keys.prompt: prompt}


def read_request(contract: PolicyContract, keys: Keys, message: Any, now_ns: int) -> tuple[Observation, int | None]:
    """The observation in a request, and the seed if it asks for a reset. Other keys than the contract's are ignored.

    `now_ns`: its stamp, where the client sends none. Raises `ContractError` naming the key that is missing or has
    another type, shape or dtype than the policy wants.
    """
    if not isinstance(message, dict):
        raise ContractError(f"a request is a map of {', '.join(keys.all)}; found {type(message).__name__}")
    missing = [key for key in keys.all if key not in message]
    if missing:
        found = ", ".join(sorted(map(str, message))) or "nothing"
        raise ContractError(f"the request lacks {', '.join(missing)}; found {found}")
    images = {
        camera.name: _image(keys.images[camera.name], message[keys.images[camera.name]], camera.height, camera.width)
        for camera in contract.cameras
    }
    state = _numbers(keys.state, message[keys.state], (len(contract.state_names),))
    prompt = message[keys.prompt]
    if not isinstance(prompt, str):
        raise ContractError(f"{keys.prompt} must be text, is {type(prompt).__name__}")
    stamp_ns, seed = _whole(STAMP, message.get(STAMP)), _whole(SEED, message.get(SEED))
    return Observation(images, state, prompt, now_ns if stamp_ns is None else stamp_ns), seed


def reply(chunk: ActionChunk, infer_s: float, previous_s: float | None) -> dict[str, Any]:
    """The message for a chunk. `previous_s`: how long the whole previous answer took, where there was one."""
    timing = {INFER_MS: 1e3 * infer_s} | ({} if previous_s is None else {"prev_total_ms": 1e3 * previous_s})
    return {ACTIONS: chunk.actions, TIMING: timing}


def read_reply(contract: PolicyContract, message: Any, stamp_ns: int) -> tuple[ActionChunk, float | None]:
    """The chunk in a reply to the observation of `stamp_ns`, and how long the server says inference took [s].

    Raises `ContractError` when there are no actions, or they are not finite numbers (H, A).
    """
    if not isinstance(message, dict) or ACTIONS not in message:
        found = ", ".join(sorted(map(str, message))) if isinstance(message, dict) else type(message).__name__
        raise ContractError(f"the reply lacks {ACTIONS}; found {found or 'nothing'}")
    actions = _numbers(ACTIONS, message[ACTIONS], (contract.chunk_length, contract.action.size))
    timing = message.get(TIMING)
    infer_ms = timing.get(INFER_MS) if isinstance(timing, dict) else None
    said = isinstance(infer_ms, (int, float)) and math.isfinite(infer_ms) and infer_ms >= 0
    chunk = ActionChunk(actions, stamp_ns, 1.0 / contract.action.rate_hz)
    return chunk, float(infer_ms) / 1e3 if said and infer_ms is not None else None


def metadata(contract: PolicyContract) -> dict[str, Any]:
    """What our server says first."""
    return {CONTRACT: contract.to_json()}


def read_metadata(message: Any) -> PolicyContract | None:
    """The contract of a volar server; None of another server. Raises `ContractError` when it cannot be read."""
    if not isinstance(message, dict):
        raise ArrayMessageError(f"an openpi server's first frame is a map, this one {type(message).__name__}")
    text = message.get(CONTRACT)
    if text is None:
        return None
    if not isinstance(text, str):
        raise ContractError(f"the server's {CONTRACT} must be text, is {type(text).__name__}")
    contract = PolicyContract.from_json(text)
    if contract.to_json() != text:
        raise ContractError(f"the server's {CONTRACT} is not in canonical form; run the same volar on both sides")
    return contract


def _image(key: str, image: Any, height: int, width: int) -> NDArray[np.uint8]:
    wanted = f"{key} must be uint8 ({height}, {width}, 3)"
    if not isinstance(image, np.ndarray):
        raise ContractError(f"{wanted}, is {type(image).__name__}")
    if image.dtype != np.uint8 or image.shape != (height, width, 3):
        raise ContractError(f"{wanted}, is {image.dtype} {image.shape}")
    return image


def _numbers(key: str, value: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """As float32: openpi clients send float64 as well."""
    if not isinstance(value, np.ndarray):
        raise ContractError(f"{key} must be an array {shape}, is {type(value).__name__}")
    if value.dtype.kind != "f" or value.shape != shape:
        raise ContractError(f"{key} must be float32 {shape}, is {value.dtype} {value.shape}")
    with np.errstate(over="ignore"):  # what float32 cannot hold is not finite below
        found = value.astype(np.float32)  # of its own memory
    if not np.isfinite(found).all():
        raise ContractError(f"{key} holds a non-finite value")
    return found


def _whole(key: str, value: Any) -> int | None:
    if value is not None and (type(value) is not int or not 0 <= value < 2**63):
        raise ContractError(f"{key} must be a whole number from 0, is {value!r:.40}")
    return value
