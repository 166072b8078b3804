"""The inference graph of a policy as a file: ONNX, or machine code made by AOTInductor; batch one, static shapes."""

import json
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volar.robots.errors import VolarError

if TYPE_CHECKING:
    import torch

    from volar.vla.processor_volar import TorchPolicy

PROTOBUF_LIMIT = 1_900_000_000  # bytes of weights; a file of protobuf ends at 2 GiB, and the rest goes beside it
COMPILERS = ("g++", "clang++")


def write_model(policy: "TorchPolicy", path: Path, precision: str = "fp32") -> None:
    """Writes `path`, whose suffix says the format: `.onnx`, or `.pt2`, in fp32 only."""
    if path.suffix == ".pt2":
        write_package(policy, path)
        return
    write_graph(policy, path)
    if precision == "int8":
        quantize(path)


def require_compiler() -> None:
    """Raises `VolarError` where AOTInductor would find no C++ compiler."""
    if not any(shutil.which(name) for name in COMPILERS):
        raise VolarError(
            f"format=pt2 needs a C++ compiler, none of {', '.join(COMPILERS)} is here: "
            "apt-get install -y g++, or format=onnx"
        )


def positional(policy: "TorchPolicy") -> tuple["torch.nn.Module", tuple["torch.Tensor", ...]]:
    """The graph with its inputs in the order of `input_names`, and examples of them."""
    import torch

    contract, graph = policy.contract, policy.graph
    names = [camera.name for camera in contract.cameras]

    class Positional(torch.nn.Module):
        """Files of graphs have positional inputs: one image tensor a camera, then state and ids."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = graph  # not `graph`: torch.fx has one of its own

        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            actions, points = self.inner(dict(zip(names, inputs[:-2], strict=True)), inputs[-2], inputs[-1])
            return actions, points

    example = (
        *(torch.zeros(1, camera.height, camera.width, 3, dtype=torch.uint8) for camera in contract.cameras),
        torch.zeros(1, len(contract.state_names)),
        torch.zeros(1, policy.tokenizer.length, dtype=torch.int64),
    )
    return Positional().eval(), example


def input_names(policy: "TorchPolicy") -> list[str]:
    return [*(f"image.{camera.name}" for camera in policy.contract.cameras), "state", "input_ids"]


def write_package(policy: "TorchPolicy", path: Path) -> None:
    """Compiles the graph ahead of time for this processor, weights inside; takes half a minute for the tiny model."""
    import logging

    import torch
    from rich.console import Console
    from torch._inductor import aoti_compile_and_package

    from volar.robots.artifact_runtime import SIGNATURE_KEY

    contract, (module, example) = policy.contract, positional(policy)
    shapes = {name: list(value.shape) for name, value in zip(input_names(policy), example, strict=True)}
    shapes |= {"actions": [1, contract.chunk_length, contract.action.size], "points": [1, 2, 3]}
    settings: dict[str, Any] = {
        "cpp.dynamic_threads": True,  # else the number of threads of this process would be in the code
        "aot_inductor.metadata": {SIGNATURE_KEY: json.dumps(shapes)},
    }
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it would say that there is no CUDA
    with warnings.catch_warnings(), torch.no_grad(), Console().status("compiling"):
        warnings.simplefilter("ignore")
        program = torch.export.export(module, example)
        aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)


def write_graph(policy: "TorchPolicy", path: Path) -> None:
    """As ONNX."""
    import logging

    import torch

    module, example = positional(policy)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            example,
            str(path),
            input_names=input_names(policy),
            output_names=["actions", "points"],
            dynamo=True,
            external_data=sum(p.nbytes for p in policy.graph.parameters()) > PROTOBUF_LIMIT,
            # Its matcher takes time quadratic in a graph's length: minutes for tokens unrolled one after another.
            optimize=policy.graph.model.config.decoder != "autoregressive",
            verbose=False,
        )
    without_traces(path)


def without_traces(path: Path) -> None:
    """Drops what the exporter noted at every node about this machine's source files: most of a small graph's size."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    for part in (*model.graph.node, *model.graph.value_info, *(n for f in model.functions for n in f.node)):
        del part.metadata_props[:]
    onnx.save(model, str(path))


def quantize(path: Path) -> None:
    """Weights of the matrix products to int8, one scale a channel; activations are quantized as they come."""
    import logging

    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = path.with_suffix(".prepared.onnx")
    logging.disable(logging.WARNING)  # it would print every shape it merges
    try:
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        quantize_dynamic(str(prepared), str(path), weight_type=QuantType.QInt8, per_channel=True)
    finally:
        logging.disable(logging.NOTSET)
        prepared.unlink(missing_ok=True)
