"""What a network assumes beyond the data's contract, said in the policy's: how instructions are put, images resized.

Entries of `preprocessing` with a dot are what a policy does itself: hashed with the rest, and no business of the body.
"""

from dataclasses import replace

from volar.robots.contract import ContractError, PolicyContract
from volar.vla.backbone import BackboneConfig
from volar.vla.configuration_volar import VolarConfig

_OWN = "network."
IMAGE, TOKENS = f"{_OWN}image", f"{_OWN}tokens"


def policy_contract(contract: PolicyContract, config: VolarConfig) -> PolicyContract:
    """The data's contract as a policy with that network has it."""
    kept = {name: fact for name, fact in contract.preprocessing.items() if not name.startswith(_OWN)}
    template = contract.instruction_template
    if not isinstance(config.backbone, BackboneConfig):  # put as the backbone was instructed
        template = config.backbone.template.replace("{instruction}", template)
    return replace(contract, instruction_template=template, preprocessing=kept | image_facts(contract, config))


def image_facts(contract: PolicyContract, config: VolarConfig) -> dict[str, str]:
    """To what images are resized, and how many tokens each camera's has.

    Left unsaid where `tiny` sees images as they come, in its usual 64 and 16 tokens: contracts from before are equal.
    """
    size, sides, cameras = config.backbone.image_size, config.camera_tokens, contract.cameras
    as_they_come = all((camera.width, camera.height) == (size, size) for camera in cameras)
    usual = all(side == (4 if i else 8) for i, side in enumerate(sides))
    if isinstance(config.backbone, BackboneConfig) and as_they_come and usual:
        return {}
    tokens = [f"{camera.name} {side * side}" for camera, side in zip(cameras, sides, strict=True)]
    return {IMAGE: f"{size}x{size} bilinear", TOKENS: ", ".join(tokens)}


def require_facts(contract: PolicyContract, config: VolarConfig) -> None:
    """Raises `ContractError` where the contract says something else than the network does; contracts from before this
    was said are taken as they are."""
    said = {name: fact for name, fact in contract.preprocessing.items() if name.startswith(_OWN)}
    does = image_facts(contract, config)
    wrong = [f"{name}: the contract says {fact}, config.json {does.get(name)}" for name, fact in said.items()]
    if said and said != does:
        raise ContractError(f"{'; '.join(wrong)}: one of the two was changed after training; use another checkpoint")
