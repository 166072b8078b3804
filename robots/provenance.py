"""How a result was made: the command that makes it again, when, and on what machine.

A reader's facts. None of them decides what comes out, so that no comparison of two results may look at them.
"""

import platform
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volar.robots.artifact_runtime import cpuinfo
from volar.robots.command_line import quoted
from volar.robots.config_values import plain
from volar.robots.graphics import find_gpu
from volar.robots.usable_cpus import usable_cpus

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_HOW_TO_BEGIN = ("resume", "overwrite")  # of a folder that is already there; a reader has none
_WORD = re.compile(r"[A-Za-z_][\w./-]*")  # is itself in a list of Hydra's grammar, unless it is one of:
_CONSTANTS = ("true", "false", "null", "nan", "inf")


def made(verb: str, config: "DataclassInstance", now: datetime) -> dict[str, Any]:
    """`command`, `date` (`now` in UTC, ISO 8601, to the second) and `machine`, as plain values."""
    return {
        "command": command(verb, config),
        "date": now.astimezone(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
    }


def command(verb: str, config: "DataclassInstance") -> str:
    """The verb's command line with which `config` came, or could have come; for a shell."""
    return shlex.join([verb, *(f"{key}={value}" for key, (value, _) in changed(config).items())])


def changed(config: "DataclassInstance") -> dict[str, tuple[str, str]]:
    """Setting -> its value and its default, as a command line has them; of those that differ from the default, and
    that decide more than how to begin in a folder (`resume`, `overwrite`)."""
    defaults = dict(_flat(plain(type(config))))
    settings = {key: (value, defaults.get(key)) for key, value in _flat(plain(config))}
    return {
        key: (_text(value), _text(default))
        for key, (value, default) in settings.items()
        if value != default and key not in _HOW_TO_BEGIN
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _text(value: Any) -> str:
    """What `command_line.parse` reads as the value again."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, list):
        return ",".join(map(_item, value)) or "[]"
    return str(value)


def _item(value: Any) -> str:
    text = _text(value)
    plainly = not isinstance(value, str) or (_WORD.fullmatch(text) and text.lower() not in _CONSTANTS)
    return text if plainly else quoted(text)


def machine(root: Path = Path("/")) -> dict[str, Any]:
    """`cpu`: the processor's model; `cpus`: how many this process may use; `gpu`: the models, or where only the device
    is known that, or None. `root`: of the file system that says what graphics processors there are."""
    return {"cpu": processor(cpuinfo()), "cpus": usable_cpus(), "gpu": _gpu(root)}


def processor(cpuinfo: str) -> str:
    """The model in the text of `/proc/cpuinfo`; where that names none (ARM, another system), the kind."""
    for key, _, value in (line.partition(":") for line in cpuinfo.splitlines()):
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return platform.machine()


def _gpu(root: Path) -> str | None:
    models: Counter[str] = Counter()
    for file in sorted((root / "proc" / "driver" / "nvidia" / "gpus").glob("*/information")):
        for key, _, value in (line.partition(":") for line in file.read_text().splitlines()):
            models.update([value.strip()] if key.strip() == "Model" else [])
    named = ", ".join(f"{count} × {model}" if count > 1 else model for model, count in sorted(models.items()))
    return named or find_gpu(root) or None
