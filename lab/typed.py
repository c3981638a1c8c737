"""From plain mappings to frozen dataclasses: the checking half of ``lab.config``, which knows no particular key.

What this is not: a schema language. Types are read from the dataclasses' annotations; what a value means is checked in
``lab.checks``.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, TypeVar, Union

T = TypeVar("T")


class ConfigError(ValueError):
    """A config key is unknown, missing, or has a value it cannot take. The message starts with the key's path."""


def nearest(word: str, known: Sequence[str]) -> str:
    """A suggestion to append to an error message: `` (did you mean 'x'?)``, or the whole list if it is short."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f" (known: {', '.join(sorted(known))})" if len(known) <= 40 else ""


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def _expected(path: str, what: str, value: Any) -> ConfigError:
    return ConfigError(f"{path}: expected {what}, got {value!r}")


@typing.overload
def build(kind: type[T], value: Any, path: str = "") -> T: ...
@typing.overload
def build(kind: object, value: Any, path: str = "") -> Any: ...
def build(kind: Any, value: Any, path: str = "") -> Any:
    """A frozen ``kind`` from a plain mapping.

    Raises ConfigError naming the full key path for unknown keys (with the nearest known one), missing keys, wrong
    types, numbers that are not finite, and values outside a Literal. Strings are never read as numbers: a quoted
    ``"1e-5"`` is an error, not a surprise later.
    """
    if typing.get_origin(kind) in (Union, types.UnionType):  # one of several dataclasses, by its ``kind``
        return _convert_union(typing.get_args(kind), value, path)
    if not isinstance(value, Mapping):
        raise _expected(path or "config", "a mapping", value)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    prefix = f"{path}." if path else ""
    for key in value:
        if key not in fields:
            raise ConfigError(f"{prefix}{key}: unknown key{nearest(str(key), list(fields))}")
    hints: dict[str, Any] = _hints(typing.cast(Any, kind))
    arguments: dict[str, Any] = {}
    for name, field in fields.items():
        if name in value:
            arguments[name] = _convert(hints[name], value[name], prefix + name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{prefix}{name}: missing")
    return kind(**arguments)


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if value == "???":
        raise ConfigError(f"{path}: must be given (it is ??? in the config)")
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value, path)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool) != isinstance(arguments[0], bool):
            suggestion = nearest(str(value), [str(argument) for argument in arguments])
            raise ConfigError(f"{path}: {value!r} is not one of {', '.join(map(str, arguments))}{suggestion}")
        return value
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, path)
    if origin in (Mapping, dict) or getattr(origin, "__name__", "") == "Mapping":
        if not isinstance(value, Mapping):
            raise _expected(path, "a mapping", value)
        return {key: _convert(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    if getattr(origin, "__name__", "") in ("Sequence", "tuple"):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise _expected(path, "a list", value)
        return tuple(_convert(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    return _convert_scalar(hint, value, path)


def _convert_union(options: Sequence[Any], value: Any, path: str) -> Any:
    """None where it is allowed; a dataclass chosen by its ``kind``; else the one other option."""
    if value is None:
        if type(None) in options:
            return None
        raise ConfigError(f"{path}: missing (it is null)")
    rest = [option for option in options if option is not type(None)]
    if len(rest) == 1:
        return _convert(rest[0], value, path)
    kinds = {name: option for option in rest for name in typing.get_args(_hints(option)["kind"])}
    if not isinstance(value, Mapping):
        raise _expected(path, "a mapping", value)
    if "kind" not in value:
        raise ConfigError(f"{path}.kind: missing (one of {', '.join(kinds)})")
    if value["kind"] not in kinds:
        raise ConfigError(f"{path}.kind: {value['kind']!r} is unknown{nearest(str(value['kind']), list(kinds))}")
    return build(kinds[value["kind"]], value, path)


def _convert_scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise _expected(path, "a finite number", value)
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (str, bool) and isinstance(value, hint):
        return value
    names = {float: "number", int: "integer", str: "string", bool: "boolean (true or false)"}
    raise _expected(path, _article(names.get(hint, str(hint))), value)


def plain(value: Any) -> Any:
    """A dataclass as plain JSON-able data, for step identities."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
