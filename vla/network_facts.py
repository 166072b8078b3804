"""What a network assumes beyond the data's contract, said in the policy's: how instructions are put, images resized.

Entries of `preprocessing` with a dot are what a policy does itself: hashed with the rest, and no business of the body.
Where the data's contract has them, a new network is made so, and no other is trained.
"""

import math
import re
from dataclasses import dataclass, replace

from volar.robots.contract import ContractError, PolicyContract
from volar.robots.errors import UsageError
from volar.vla.backbone import RESIZES, BackboneConfig
from volar.vla.configuration_volar import VolarConfig

_OWN = "network."
IMAGE, TOKENS = f"{_OWN}image", f"{_OWN}tokens"


@dataclass(frozen=True)
class Asked:
    """What a contract asks of a network, None where it leaves it open: `image_size` [pixels], `resize` and
    `camera_tokens` along one side, as in `VolarConfig`."""

    image_size: int | None
    resize: str
    camera_tokens: tuple[int, ...] | None

    @staticmethod
    def by(contract: PolicyContract) -> "Asked":
        """Raises `ContractError` for an entry that cannot be read."""
        said = {name: fact for name, fact in contract.preprocessing.items() if name.startswith(_OWN)}
        usual = {IMAGE: "0x0 antialiased", TOKENS: ", ".join(f"{camera.name} 0" for camera in contract.cameras)}
        image = re.fullmatch(rf"(\d+)x\1 ({'|'.join(RESIZES)})", said.get(IMAGE, usual[IMAGE]))
        each = [part.rpartition(" ") for part in said.get(TOKENS, usual[TOKENS]).split(", ")]
        counts = [int(count) if count.isdecimal() else -1 for _, _, count in each]
        named = [name for name, _, _ in each] == [camera.name for camera in contract.cameras]
        square = named and all(count >= 0 and math.isqrt(count) ** 2 == count for count in counts)
        if not image or not square or said.keys() - usual:
            example = ", ".join(f"{camera.name} 64" for camera in contract.cameras)
            raise ContractError(
                f"the contract's {said} cannot be read: it takes {IMAGE} such as '224x224 antialiased' and {TOKENS}, "
                f"of each camera a square number, such as '{example}'"
            )
        sides = tuple(map(math.isqrt, counts))
        return Asked(int(image[1]) or None, image[2], sides if all(sides) else None)


def camera_tokens(contract: PolicyContract, grid: int, *options: tuple[int, ...] | None) -> tuple[int, ...]:
    """The first option that is there: tokens along one side of each camera's image. Raises `UsageError` for what a
    grid x grid of tokens cannot be pooled to."""
    wanted = next(option for option in options if option is not None)
    fits = [side for side in range(1, grid + 1) if grid % side == 0]
    names = [camera.name for camera in contract.cameras]
    said = f"camera_tokens={','.join(map(str, wanted))}"
    if len(wanted) != len(names):
        raise UsageError(f"{said}: give one number for each of the cameras {', '.join(names)}")
    wrong = [f"{name} {side}" for name, side in zip(names, wanted, strict=True) if side not in fits]
    if wrong:
        raise UsageError(
            f"{said}: an image has {grid} x {grid} tokens, which cannot be pooled to the side of {', '.join(wrong)}; "
            f"choices: {', '.join(map(str, fits))}"
        )
    return wanted


def policy_contract(contract: PolicyContract, config: VolarConfig) -> PolicyContract:
    """The data's contract as a policy with that network has it. Raises `ContractError` where it asks for another."""
    fix = "give settings that agree (image_size=, camera_tokens=), or mend the dataset's meta/volar_contract.json"
    require_facts(contract, config, fix)
    kept = {name: fact for name, fact in contract.preprocessing.items() if not name.startswith(_OWN)}
    template = contract.instruction_template
    if not isinstance(config.backbone, BackboneConfig):  # put as the backbone was instructed
        template = config.backbone.template.replace("{instruction}", template)
    return replace(contract, instruction_template=template, preprocessing=kept | image_facts(contract, config))


def image_facts(contract: PolicyContract, config: VolarConfig) -> dict[str, str]:
    """To what images are resized and how, and how many tokens each camera's has.

    Left unsaid where `tiny` sees images as they come, in its usual 64 and 16 tokens, and the contract says nothing:
    contracts from before are equal.
    """
    backbone, sides, cameras = config.backbone, config.camera_tokens, contract.cameras
    size = backbone.image_size
    as_they_come = all((camera.width, camera.height) == (size, size) for camera in cameras)
    usual = all(side == (4 if i else 8) for i, side in enumerate(sides))
    said = any(name in contract.preprocessing for name in (IMAGE, TOKENS))
    if isinstance(backbone, BackboneConfig) and as_they_come and usual and not said:
        return {}
    tokens = [f"{camera.name} {side * side}" for camera, side in zip(cameras, sides, strict=True)]
    return {IMAGE: f"{size}x{size} {backbone.resize}", TOKENS: ", ".join(tokens)}


def require_facts(contract: PolicyContract, config: VolarConfig, fix: str) -> None:
    """Raises `ContractError` where the contract says something else than the network does; contracts from before this
    was said are taken as they are. `fix`: what to do then."""
    said = {name: fact for name, fact in contract.preprocessing.items() if name.startswith(_OWN)}
    does = image_facts(contract, config)
    wrong = [
        f"{name}: the contract says {fact}, the network does {does.get(name)}"
        for name, fact in said.items()
        if does.get(name) != fact
    ]
    if wrong:
        raise ContractError(f"{'; '.join(wrong)}: {fix}")
