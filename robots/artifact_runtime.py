"""What runs an artifact's graph: ONNX Runtime (`policy.onnx`), or a package compiled ahead of time (`policy.pt2`).

A package is machine code for one kind of processor and one version of torch; both are in the manifest and are compared
before the package is loaded, since code for another processor ends the process instead of raising.
ONNX Runtime computes on the provider that the environment variable `VOLAR_PROVIDER` names: cpu, cuda, tensorrt or
auto, the default: CUDA where it works, else the CPU. The golden set is checked on that provider.
"""

import json
import os
import platform
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from volar.robots.errors import VolarError

PROVIDER_VARIABLE = "VOLAR_PROVIDER"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
AUTO = "auto"
# TF32 would round a matrix product's inputs to 10 bits, far beyond the golden set's tolerance.
_OPTIONS: dict[str, dict[str, str]] = {"CUDAExecutionProvider": {"use_tf32": "0"}}
SIGNATURE_KEY = "volar_signature"  # of a package's metadata: name -> shape, as JSON, inputs in their order
# Linux' names of what `-march=native` turns on for arithmetic; "pni" is SSE3.
_X86_INSTRUCTIONS = (
    *("sse", "pni", "ssse", "avx", "amx", "fma", "f16c", "bmi", "abm", "popcnt", "movbe", "cx16", "adx"),
    *("aes", "vaes", "pclmul", "vpclmul", "sha", "gfni"),
)
# Sums of products of 8 bits in 32. An x86 processor with none of these sums two at a time in 16, cut off at 32767
# (onnxruntime.ai/docs/performance/model-optimizations/quantization.html, "U8S8"): an int8 artifact would answer wrong.
_VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}


class RuntimeFailure(VolarError):
    """A graph that cannot be loaded here; the artifact's loader adds where it lies."""


class Runtime(Protocol):
    """`shapes`: of each input and output by name; `where`: what computes, for messages."""

    shapes: dict[str, list[int]]
    where: str

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Actions (1, H, A) and points (1, 2, 3)."""
        ...


class OnnxRuntime:
    """Raises `RuntimeFailure` for a file that ONNX Runtime cannot load or a provider that it does not have."""

    def __init__(self, file: Path, threads: int) -> None:
        import onnxruntime

        asked = os.environ.get(PROVIDER_VARIABLE, AUTO)
        chosen = choose_provider(asked, available_providers())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        # A spinning worker would take the core that the control loop needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors only
        if not _VNNI & set(instructions(cpuinfo())):  # exact, if slower, where the sums would be cut off
            options.add_session_config_entry("session.x64quantprecision", "1")
        wanted = [(name, _OPTIONS.get(name, {})) for name in chosen]
        try:
            self._session = onnxruntime.InferenceSession(file, options, providers=wanted)
        except Exception as error:  # onnxruntime raises a class of its own for each status code
            raise RuntimeFailure(f"ONNX Runtime cannot load {file.name}: {str(error).splitlines()[0]}") from error
        self.where = self._session.get_providers()[0]
        if self.where != chosen[0]:  # it goes on without a provider whose libraries are missing
            said = f"{chosen[0]} does not start here, only {self.where}: {PROVIDER_VARIABLE}=cpu uses that"
            if asked != AUTO:
                raise RuntimeFailure(said)
            warnings.warn(f"{said} without this warning", RuntimeWarning, stacklevel=2)
        values = [*self._session.get_inputs(), *self._session.get_outputs()]
        self.shapes = {value.name: list(value.shape) for value in values}

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        actions, points = self._session.run(["actions", "points"], dict(feeds))
        return actions, points


class Pt2Runtime:
    """A package of AOTInductor, on the CPU. `built_for`: of `this_machine`, where it was compiled.
    Raises `RuntimeFailure` where torch is missing or the package is for another machine."""

    def __init__(self, file: Path, threads: int, built_for: Mapping[str, str]) -> None:
        try:
            import torch
            from torch._inductor import aoti_load_package
        except ImportError as error:
            raise RuntimeFailure(
                f"{file.name} needs torch, which is not installed here; install torch=={built_for.get('torch', '')}, "
                "or export with format=onnx, which needs onnxruntime only"
            ) from error
        if problem := misfit(built_for, this_machine()):
            raise RuntimeFailure(f"{file.name} {problem}; export it again on this machine, or with format=onnx")
        torch.set_num_threads(threads)
        self._torch = torch
        try:
            self._model = aoti_load_package(str(file))
            self.shapes = json.loads(self._model.get_metadata()[SIGNATURE_KEY])
        except (RuntimeError, KeyError, ValueError, OSError) as error:
            raise RuntimeFailure(
                f"torch cannot load {file.name}: {(str(error) or repr(error)).splitlines()[0]}"
            ) from error
        self._inputs = [name for name in self.shapes if name not in ("actions", "points")]
        self.where = f"torch {torch.__version__}, compiled for the CPU"

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with self._torch.inference_mode():
            tensors = [self._torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in self._inputs]
            actions, points = self._model(*tensors)
        return actions.numpy(), points.numpy()


def available_providers() -> list[str]:
    """Of `PROVIDERS`, those that the installed ONNX Runtime was built with."""
    import onnxruntime

    found = onnxruntime.get_available_providers()
    return [name for name, theirs in PROVIDERS.items() if theirs in found]


def describe() -> str:
    """ONNX Runtime's version, what it offers, and what an artifact runs on. Raises `RuntimeFailure`."""
    import onnxruntime

    asked, available = os.environ.get(PROVIDER_VARIABLE, AUTO), available_providers()
    chosen = choose_provider(asked, available)[0]
    return f"{onnxruntime.__version__} with {', '.join(available)}; {PROVIDER_VARIABLE}={asked} takes {chosen}"


def choose_provider(asked: str, available: Sequence[str]) -> list[str]:
    """ONNX Runtime's providers, the preferred first. Raises `RuntimeFailure` naming what there is."""
    if asked == AUTO:
        asked = "cuda" if "cuda" in available else "cpu"
    if asked not in available:
        fix = "pip install onnxruntime-gpu in place of onnxruntime" if asked in PROVIDERS else f"or {AUTO}"
        raise RuntimeFailure(f"{PROVIDER_VARIABLE}={asked}: ONNX Runtime here has {', '.join(available)}; {fix}")
    order = {"tensorrt": ("tensorrt", "cuda", "cpu"), "cuda": ("cuda", "cpu")}.get(asked, ("cpu",))
    return [PROVIDERS[name] for name in order if name in available]


def this_machine() -> dict[str, str]:
    """What a package depends on: torch's version, and the processor with its instructions (sorted, by Linux' names)."""
    import torch

    return {
        "torch": str(torch.__version__).partition("+")[0],
        "processor": platform.machine(),
        "instructions": " ".join(instructions(cpuinfo())),
    }


def cpuinfo() -> str:
    """`/proc/cpuinfo`; empty where there is no Linux, and the kind of processor has to do."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def instructions(cpuinfo: str) -> list[str]:
    """Sorted, of the first processor in the text of `/proc/cpuinfo`: those that a compiler makes use of."""
    for key, _, value in (line.partition(":") for line in cpuinfo.splitlines()):
        if key.strip() == "flags":  # x86; many say something of the kernel, or of a virtual machine
            return sorted(name for name in value.split() if name.startswith(_X86_INSTRUCTIONS))
        if key.strip() == "Features":  # ARM
            return sorted(value.split())
    return []


def misfit(built_for: Mapping[str, str], here: Mapping[str, str]) -> str:
    """Why a package compiled for one machine does not run on another; empty if it does. It may use every instruction
    of the processor it was compiled on, so all of them must be here."""
    for name in ("torch", "processor"):
        if built_for.get(name) != here[name]:
            return f"was compiled for {name} {built_for.get(name)}, this is {here[name]}"
    if missing := sorted(set(built_for.get("instructions", "").split()) - set(here["instructions"].split())):
        return f"was compiled for a processor with {', '.join(missing[:5])}, which this one lacks"
    return ""
