"""Between dataclasses and plain values: defaults out, checked and typed values back in."""

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from volar.robots.errors import Unknown, UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

REQUIRED = "???"  # OmegaConf's mark for a value that must be given


class ConfigValueError(UsageError):
    """A value that does not fit its field's type; the message names key, value and type."""


def plain(config: "type[DataclassInstance] | DataclassInstance") -> dict[str, Any]:
    """A dataclass, or the defaults of one, as plain values: nested dicts, lists, strings for paths.

    A field without a default becomes `REQUIRED`; a nested dataclass without one shows its own defaults.
    """
    values: dict[str, Any] = {}
    hints = get_type_hints(config if isinstance(config, type) else type(config))
    for item in fields(config):
        if not item.init:
            continue
        if not isinstance(config, type):
            value = getattr(config, item.name)
        elif item.default is not MISSING:
            value = item.default
        elif item.default_factory is not MISSING:
            value = item.default_factory()
        else:
            hint = hints[item.name]
            value = hint if isinstance(hint, type) and is_dataclass(hint) else REQUIRED
        values[item.name] = _plain_value(value)
    return values


def _plain_value(value: Any) -> Any:
    if is_dataclass(value):
        return plain(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain_value(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain_value(item) for key, item in value.items()}
    return value


def convert(value: Any, hint: Any, key: str) -> Any:
    """A plain value as the type `hint` asks for: `None`, bool, int, float, str, `Path`, `Literal`, unions,
    lists, tuples, dicts and dataclasses of those. An int is taken for a float, nothing else is coerced.

    Raises `ConfigValueError` naming `key`, the value and the type; `Unknown` for a `Literal`'s choices.
    """
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if value not in args:
            raise Unknown(key, str(value), map(str, args))
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(value, args, hint, key)
    if isinstance(hint, type) and is_dataclass(hint):
        return _convert_dataclass(value, hint, key)
    if origin in (list, tuple, Sequence) or hint in (list, tuple):
        return _convert_sequence(value, hint, key)
    if origin in (dict, Mapping) or hint is dict:
        if not isinstance(value, dict):
            raise _wrong(value, hint, key)
        return {str(k): convert(v, args[1] if args else Any, f"{key}.{k}") for k, v in value.items()}
    return _convert_scalar(value, hint, key)


def _convert_scalar(value: Any, hint: Any, key: str) -> Any:
    if hint is types.NoneType and value is None:
        return None
    if hint is Path and isinstance(value, str):
        if not value:
            raise ConfigValueError(f"{key} is empty; expected a path")
        return Path(value).expanduser()
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint in (bool, int, str) and type(value) is hint:
        return value
    raise _wrong(value, hint, key)


def _convert_union(value: Any, args: tuple[Any, ...], hint: Any, key: str) -> Any:
    if value is None and types.NoneType in args:
        return None
    options = [option for option in args if option is not types.NoneType]
    if len(options) == 1:
        return convert(value, options[0], key)
    for option in options:
        try:
            return convert(value, option, key)
        except UsageError:
            continue
    raise _wrong(value, hint, key)


def _convert_sequence(value: Any, hint: Any, key: str) -> Any:
    origin, args = get_origin(hint) or hint, get_args(hint)
    if not isinstance(value, list):
        raise _wrong(value, hint, key)
    if origin is tuple and args and args[-1] is not Ellipsis:
        if len(value) != len(args):
            raise ConfigValueError(f"{key}={value} has {len(value)} entries; expected {len(args)} ({type_name(hint)})")
        return tuple(convert(item, args[i], f"{key}[{i}]") for i, item in enumerate(value))
    items = [convert(item, args[0] if args else Any, f"{key}[{i}]") for i, item in enumerate(value)]
    return items if origin is list else tuple(items)


def _convert_dataclass(value: Any, hint: type, key: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(value, hint, key)
    hints = get_type_hints(hint)
    prefix = f"{key}." if key else ""
    values = {name: convert(item, hints[name], prefix + name) for name, item in value.items()}
    try:
        return hint(**values)
    except ValueError as error:  # the dataclass's own validation
        raise ConfigValueError(f"{key}: {error}" if key else str(error)) from error


def _wrong(value: Any, hint: Any, key: str) -> ConfigValueError:
    shown = "null" if value is None else value
    return ConfigValueError(f"{key}={shown} is not of type {type_name(hint)}")


def type_name(hint: Any) -> str:
    """A type as a reader of `--help` knows it: `int`, `path`, `a|b`, `list of int`."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "|".join(map(str, args))
    if origin in (Union, types.UnionType):
        return "|".join("null" if option is types.NoneType else type_name(option) for option in args)
    if origin in (list, Sequence) or (origin is tuple and args[-1] is Ellipsis):
        return f"list of {type_name(args[0])}"
    if origin is tuple:
        return "[" + ",".join(map(type_name, args)) + "]"
    if hint is Path:
        return "path"
    return "dict" if origin in (dict, Mapping) else str(getattr(hint, "__name__", hint))
