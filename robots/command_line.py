"""Every verb's command line: `key=value` settings (Hydra's syntax) onto a dataclass, errors and exit codes.

    def main() -> int:
        return run("volar-collect", CollectConfig, collect, doc=__doc__, examples=("volar-collect output=runs/a",))

The dataclass is the schema: its fields are the keys, its defaults the defaults, `metadata={"help": ...}` the
help. `--help` and a misspelled key answer from it alone, before Hydra (or anything heavier) is imported. Hydra's
compose API parses the values; it changes no directory and writes no `outputs/`. `main` gets the dataclass,
never a `DictConfig`. Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted.
"""

import errno
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from volar.robots.config_values import REQUIRED, ConfigValueError, convert, plain, type_name
from volar.robots.errors import Unknown, UsageError, VolarError
from volar.robots.output_folder import contents

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_KEY = re.compile(r"^[A-Za-z_]\w*(\.\w+)*$")


def run[C: "DataclassInstance"](
    verb: str,
    config: type[C],
    main: Callable[[C], int | None],
    *,
    doc: str | None,
    examples: Sequence[str] = (),
    config_dir: Path | None = None,
    positional: Sequence[str] = (),
    argv: Sequence[str] | None = None,
) -> int:
    """Runs a verb; returns its exit code (`main`'s own where that returns one, else 0).

    `positional`: fields that take bare words, in order (`volar-doctor ARTIFACT`). `config_dir`: holds
    `<field>/<value>.yaml` for each field with `metadata={"group": True}`; that file's keys replace defaults,
    and the command line replaces the file's. `argv`: without the program's name; `sys.argv[1:]` by default.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    verbose = any(word in ("-v", "--verbose") for word in words)
    words = [word for word in words if word not in ("-v", "--verbose")]
    parsed, before = None, None
    try:
        if any(word in ("-h", "--help") for word in words):
            print(help_text(verb, config, doc or "", examples, config_dir, positional))
            return 0
        if "--version" in words:
            from importlib.metadata import version

            print(f"{verb} {version('volar')}")
            return 0
        parsed = parse(config, words, config_dir=config_dir, positional=positional)
        before = _stamp(parsed)
        first = os.environ.get("RANK", "0") == "0"  # of the processes that a launcher starts, one speaks
        if first and getattr(parsed, "resume", False) and _is_empty(output := Path(getattr(parsed, "output", "."))):
            print(f"nothing to resume in {output} yet: beginning anew", flush=True)
        return main(parsed) or 0
    except KeyboardInterrupt:
        if not any(item.name == "resume" for item in fields(config)):
            return _fail(verb, "interrupted", 130)
        # As it was, a folder holds nothing of this run, or what overwrite=true was to replace.
        if not getattr(parsed, "resume", False) and _stamp(parsed) == before:
            again = shlex.join([verb, *words])
            return _fail(verb, f"interrupted before anything was written; start again with: {again}", 130)
        kept = (word for word in words if not word.startswith(("resume=", "overwrite=")))  # they exclude each other
        return _fail(verb, f"interrupted; continue with: {shlex.join([verb, *kept, 'resume=true'])}", 130)
    except Exception as error:
        if verbose:
            traceback.print_exc()
        if isinstance(error, UsageError):
            return _fail(verb, f"{error} ({verb} --help lists every setting)", 2)
        if isinstance(error, VolarError):
            return _fail(verb, str(error), 1)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return _fail(verb, f"the disk is full ({error.filename or error}); free some space, then run it again", 1)
        hint = "" if verbose else " (-v shows the traceback)"
        return _fail(verb, f"{type(error).__name__}: {error}{hint}", 1)


def parse[C: "DataclassInstance"](
    config: type[C], words: Sequence[str], *, config_dir: Path | None = None, positional: Sequence[str] = ()
) -> C:
    """The dataclass that a command line describes. Raises `UsageError` (or `Unknown`) naming what is wrong."""
    settings = _settings(config, words, positional)
    hints = leaf_hints(config)
    for key in settings:
        _require_known(key, hints)

    from omegaconf import OmegaConf

    node: Any = OmegaConf.create(plain(config))
    for item in _groups(config):
        chosen = settings.get(item.name, plain(config)[item.name])
        if chosen not in (None, REQUIRED, "", "none", "null"):
            node = OmegaConf.merge(node, OmegaConf.create(_group_values(item, str(chosen), config_dir, hints)))
    raw = _compose(node, {key: _hydra_value(text, hints[_field_of(key, hints)]) for key, text in settings.items()})
    missing = _missing(raw)
    if missing:
        raise UsageError("missing " + ", ".join(f"{key}=..." for key in missing))
    try:
        value = convert(raw, config, "")
    except ConfigValueError as error:
        raise UsageError(str(error)) from error
    assert isinstance(value, config)
    return value


def _is_empty(output: Path) -> bool:
    """Where every verb begins anew with `resume=true`, so that a script may give it from the first time on."""
    return not output.exists() or (output.is_dir() and not contents(output))


def _stamp(parsed: object) -> tuple[int, int] | None:
    """What moves when the folder `output` is replaced, or gets or loses an entry; None where there is none."""
    output = getattr(parsed, "output", None)
    try:
        found = Path(output).stat() if output else None
    except OSError:
        found = None
    if found is None:
        return None
    return found.st_ino, found.st_mtime_ns


def _fail(verb: str, message: str, code: int) -> int:
    print(f"{verb}: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _settings(config: type["DataclassInstance"], words: Sequence[str], positional: Sequence[str]) -> dict[str, str]:
    """The words as key -> text, in order. Raises `UsageError` for a setting that is given twice."""
    settings: dict[str, str] = {}

    def give(key: str, text: str) -> None:
        if key in settings:
            raise UsageError(f"{key} is given twice: {key}={settings[key]} and {key}={text}; leave one away")
        settings[key] = text

    bare = list(positional)
    names = [item.name for item in fields(config) if item.init]
    for word in words:
        key, equals, text = word.partition("=")
        if equals and _KEY.match(key):
            give(key, text)
        elif word.startswith("-") and len(word) > 1 and not word[1].isdigit():
            name = key.lstrip("-").replace("-", "_")
            hint = f"write {name}={text or '...'}" if name in names else "settings are key=value"
            raise UsageError(f"unknown option {word!r}; {hint}; options are -h, -v and --version")
        elif bare:
            give(bare.pop(0), word)
        else:
            raise UsageError(f"{word!r} is not a setting; write key=value (keys: {', '.join(names)})")
    return settings


def leaf_hints(config: type, prefix: str = "") -> dict[str, Any]:
    """Every settable key, dotted, with its type; a nested dataclass appears with its own keys below it."""
    found: dict[str, Any] = {}
    hints = get_type_hints(config)
    for item in fields(config):
        if not item.init:
            continue
        hint = hints[item.name]
        found[prefix + item.name] = hint
        if nested := _nested(hint):
            found |= leaf_hints(nested, f"{prefix}{item.name}.")
    return found


def _nested(hint: Any) -> type | None:
    for option in (hint, *get_args(hint)):
        if isinstance(option, type) and is_dataclass(option):
            return option
    return None


def _field_of(key: str, hints: dict[str, Any]) -> str:
    """The declared key of which `key` is a part (`weights.lift` of a `dict` field `weights`), or ''."""
    while key and key not in hints:
        key = key.rpartition(".")[0]
    return key


def _require_known(key: str, hints: dict[str, Any]) -> None:
    owner = _field_of(key, hints)
    if owner == key:
        return
    if not owner or getattr(hints[owner], "__origin__", None) is not dict:
        raise Unknown("setting", key, hints)


def _hydra_value(text: str, hint: Any) -> str:
    """The text as Hydra's grammar wants it: strings verbatim, lists with or without brackets."""
    options = [option for option in (get_args(hint) or (hint,)) if option is not NoneType]
    if text == "null" and len(options) < len(get_args(hint)):
        return text
    origins = {getattr(option, "__origin__", option) for option in options} | {getattr(hint, "__origin__", hint)}
    if origins & {tuple, list}:
        return text if text.startswith("[") else f"[{text}]"
    if all(option in (str, Path) or isinstance(option, str) for option in options):  # str, Path, Literal["a", "b"]
        return quoted(text)
    return text


def quoted(text: str) -> str:
    """The text as a string of Hydra's grammar, whatever is in it."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"


def _compose(node: Any, settings: dict[str, str]) -> dict[str, Any]:
    from hydra import compose, initialize
    from hydra.core.config_store import ConfigStore
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    ConfigStore.instance().store(name="volar", node=node)
    for key, value in settings.items():
        try:
            sweep = OverridesParser.create().parse_override(f"{key}={value}").is_sweep_override()
        except HydraException as error:
            raise UsageError(f"{key}={value} cannot be read: {str(error).splitlines()[0]}") from error
        if sweep:
            raise UsageError(f"{key}={value} names several values; this verb takes one")
    try:
        with initialize(config_path=None, version_base=None, job_name="volar"):
            # `++`: set whether or not there is such a key; unknown keys were refused above.
            composed = compose("volar", overrides=[f"++{key}={value}" for key, value in settings.items()])
        values = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(str(error).splitlines()[0]) from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _missing(raw: dict[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key, value in raw.items():
        if isinstance(value, dict):
            found += _missing(value, f"{prefix}{key}.")
        elif value == REQUIRED:
            found.append(prefix + key)
    return found


def _groups(config: type["DataclassInstance"]) -> list[Field[Any]]:
    return [item for item in fields(config) if item.metadata.get("group")]


def _group_choices(name: str, config_dir: Path | None) -> dict[str, Path]:
    folder = config_dir / name if config_dir else None
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder else {}


def _group_values(item: Field[Any], chosen: str, config_dir: Path | None, hints: dict[str, Any]) -> dict[str, Any]:
    from omegaconf import OmegaConf

    choices = _group_choices(item.name, config_dir)
    if chosen not in choices:
        raise Unknown(item.name, chosen, choices)
    values = OmegaConf.to_container(OmegaConf.load(choices[chosen])) or {}
    if not isinstance(values, dict):
        raise UsageError(f"{choices[chosen]} must hold keys and values")
    for key in _flat(values, hints):
        try:
            _require_known(key, hints)
        except Unknown as error:
            raise UsageError(f"{choices[chosen]}: {error}") from error
    return {str(key): value for key, value in values.items()}


def _flat(values: dict[Any, Any], hints: dict[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        deeper = isinstance(value, dict) and name in hints and _nested(hints[name])
        found += _flat(value, hints, f"{name}.") if deeper else [name]
    return found


def help_text(
    verb: str,
    config: type["DataclassInstance"],
    doc: str,
    examples: Sequence[str] = (),
    config_dir: Path | None = None,
    positional: Sequence[str] = (),
) -> str:
    """The page that `--help` prints: what the verb does, every setting with type, default and help, examples."""
    bare = "".join(f" [{name.upper()}]" for name in positional)
    lines = [doc.strip(), "", f"usage: {verb}{bare} key=value ... [-v] [-h]", "", "settings:"]
    rows = _help_rows(config, config_dir)
    left = min(max((len(row[0]) for row in rows), default=0), 34)
    middle = min(max((len(row[1]) for row in rows), default=0), 24)
    lines += [f"  {key:<{left}}  {kind:<{middle}}  {text}".rstrip() for key, kind, text in rows]
    lines += ["", "options:", "  -v, --verbose  print the traceback of a failure", "  -h, --help     print this"]
    lines += ["  --version      print the version"]
    if examples:
        lines += ["", "examples:", *(f"  {example}" for example in examples)]
    return "\n".join(lines)


def _help_rows(
    config: type["DataclassInstance"], config_dir: Path | None, prefix: str = ""
) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    hints = get_type_hints(config)
    defaults = plain(config)
    for item in fields(config):
        if not item.init:
            continue
        nested, default, text = _nested(hints[item.name]), defaults[item.name], str(item.metadata.get("help", ""))
        if nested is not None and item.default is MISSING and isinstance(default, dict):
            rows += _help_rows(nested, config_dir, f"{prefix}{item.name}.")
            continue
        if item.metadata.get("group"):
            text = f"{text} (choices: {', '.join(_group_choices(item.name, config_dir))})".strip()
        shown = "..." if default == REQUIRED else _shown(default)
        required = "required. " if default == REQUIRED else ""
        rows.append((f"{prefix}{item.name}={shown}", type_name(hints[item.name]), required + text))
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(_shown(item) for item in value) + "]"
    if isinstance(value, str):
        return f'"{value}"' if " " in value or not value else value
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
