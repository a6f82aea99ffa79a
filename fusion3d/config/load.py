"""Strict YAML and command-line overrides to a ``Config``. The only file that knows YAML."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from fusion3d.config.ranges import Range
from fusion3d.config.schema import Config
from fusion3d.errors import ConfigError

T = TypeVar("T")


def load_config(path: str | Path | None = None, overrides: list[str] | None = None) -> Config:
    """The configuration in a YAML file (or the defaults), with ``--a.b value`` overrides applied.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, or a value has the wrong type or range.
    """
    import yaml

    values: dict[str, Any] = {}
    if path is not None:
        path = Path(path)
        if path.parent == Path("configs") and not path.exists():  # in another folder it is the shipped one
            package = Path(__file__).parents[1]
            shipped = (folder / path for folder in (package, package.parent))
            path = next((candidate for candidate in shipped if candidate.is_file()), path)
        try:
            loaded = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the configuration {path}: {error}") from error
        values = {} if loaded is None else loaded
    config = from_dict(values, source=str(path) if path is not None else "defaults")
    return override(config, overrides) if overrides else config


def override(config: Config, overrides: list[str]) -> Config:
    """``config`` with command-line overrides such as ``["--train.epochs", "3"]`` (``--help`` lists every key).

    A section that is null begins with its defaults where one of its keys is given, and ``--lidar null`` ends one.

    Raises:
        ConfigError: a value is out of its range.
    """
    import tyro

    others, left = [], list(overrides)
    while left:
        text = left.pop(0)
        key, _, value = text.partition("=")
        names = key.removeprefix("--").replace("-", "_").split(".") if text.startswith("--") else []
        null = value == "null" or left[:1] == ["null"]
        ended = _without(config, names) if null else None
        if ended is not None:
            config, left = ended, left if value else left[1:]
        else:
            config = _with_section(config, names[:-1])
            others.append(text)
    return check(tyro.cli(Config, default=config, args=others, config=(tyro.conf.AvoidSubcommands,)))


def _without(section: T, names: list[str]) -> T | None:
    """``section`` with what these names lead to null; None where that cannot be null."""
    hint = typing.get_type_hints(type(section)).get(names[0]) if names else None
    inner = getattr(section, names[0]) if hint is not None else None
    if len(names) > 1:
        new = _without(inner, names[1:]) if dataclasses.is_dataclass(inner) else None
        return None if new is None else dataclasses.replace(section, **{names[0]: new})  # type: ignore[type-var]
    return dataclasses.replace(section, **{names[0]: None}) if _may_be_null(hint) else None  # type: ignore[type-var]


def _with_section(section: T, names: list[str]) -> T:
    """``section`` with those that these names lead to, at their defaults where they are null."""
    hint = typing.get_type_hints(type(section)).get(names[0]) if names else None
    inner = getattr(section, names[0]) if hint is not None else None
    if inner is None and _may_be_null(hint):
        inner = next(kind for kind in typing.get_args(hint) if kind is not types.NoneType)()
    if not dataclasses.is_dataclass(inner):
        return section
    return dataclasses.replace(section, **{names[0]: _with_section(inner, names[1:])})  # type: ignore[type-var]


def _may_be_null(hint: Any) -> bool:
    return types.NoneType in typing.get_args(hint)


def from_dict(values: Any, source: str = "configuration") -> Config:
    """A ``Config`` from nested plain values, strictly; errors as in ``load_config``."""
    return check(_build(Config, values, source), source)


def check(config: Config, source: str = "configuration") -> Config:
    """``config`` itself, if every setting is in its range.

    Raises:
        ConfigError: the first that is not, with what it may be.
    """
    for key, value, allowed in _ranges(config):
        if not allowed.holds(value):
            raise ConfigError(f"{source}: {key}: expected {allowed.expected}, found {value!r}")
    return config


def _ranges(section: Any, path: str = "") -> Iterator[tuple[str, Any, Range]]:
    """Dotted key, value and range of every setting that has one."""
    for name, hint in typing.get_type_hints(type(section), include_extras=True).items():
        value = getattr(section, name)
        if dataclasses.is_dataclass(value):
            yield from _ranges(value, f"{path}{name}.")
        for allowed in getattr(hint, "__metadata__", ()):
            if isinstance(allowed, Range):
                yield f"{path}{name}", value, allowed


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain values of a configuration, for JSON or YAML."""
    return dataclasses.asdict(config)


def differences(config: Any, default: Any = None, path: str = "") -> dict[str, Any]:
    """Dotted keys whose value is not the default."""
    default = type(config)() if default is None else default
    found: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value, usual = getattr(config, f.name), getattr(default, f.name)
        if dataclasses.is_dataclass(value) and usual is not None:
            found |= differences(value, usual, f"{path}{f.name}.")
        elif value != usual:
            found[f"{path}{f.name}"] = value
    return found


def _build(schema: type[T], values: Any, path: str) -> T:
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values, found {values!r}")
    hints = typing.get_type_hints(schema)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.0)
            raise ConfigError(f"{path}: unknown key {key!r}; did you mean {near[0]!r}? known: {', '.join(hints)}")
    built = {key: _coerce(hints[key], value, f"{path}: {key}") for key, value in values.items()}
    try:
        return schema(**built)
    except ConfigError as error:  # of a section that checks itself and names itself, as the grid does
        raise ConfigError(f"{path.rpartition(': ')[0]}: {error}") from error


def _coerce(hint: Any, value: Any, path: str) -> Any:
    """``value`` as the type that the schema asks for, or a ConfigError that names the key."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _coerce(next(a for a in args if a is not type(None)), value, path)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, path)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{path}: expected one of {', '.join(map(repr, args))}, found {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{path}: expected a list, found {value!r}")
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            raise ConfigError(f"{path}: expected {len(kinds)} values, found {value!r}")
        return tuple(_coerce(kind, item, path) for kind, item in zip(kinds, value, strict=True))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{path}: expected names and values, found {value!r}")
        return {_coerce(args[0], key, path): _coerce(args[1], item, f"{path}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(f"{path}: expected {hint.__name__}, found {value!r}")
    return value
