"""A TOML recipe plus dotted overrides becomes one frozen, strict, typed tree.

Each room defines the settings that it uses as a subclass of `Settings`, with a string under every field that
explains it; `train.recipe` composes them. This file only knows how to read, to override, to refuse and to write
back. An unknown key is an error that names the nearest known one, because a misspelt setting that is silently
ignored costs a run.
"""

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from nezha_ds.errors import ConfigError

Tree = dict[str, Any]


class Settings(BaseModel):
    """A frozen group of settings; unknown keys and values of the wrong type are refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True)


SettingsT = TypeVar("SettingsT", bound=Settings)


def load(kind: type[SettingsT], recipe: Path | None = None, overrides: Sequence[str] = ()) -> SettingsT:
    """The settings of `kind`: its defaults, then the recipe's values, then the overrides `a.b=value`.

    Raises ConfigError for an unreadable file, an unknown key, a wrong type or a value out of range.
    """
    tree = read_toml(recipe) if recipe else {}
    for override in overrides:
        set_dotted(tree, override)
    return build(kind, tree, origin=str(recipe) if recipe else "the command line")


def build(kind: type[SettingsT], tree: Mapping[str, Any], origin: str) -> SettingsT:
    """Validate a plain tree; `origin` is the file or place that an error message points to."""
    try:
        # By way of JSON, in which strict types still let a string be a path and a list a tuple.
        return kind.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_explain(kind, error)}") from None
    except TypeError as error:
        raise ConfigError(f"{origin}: {error}; write it as a string") from None


def read_toml(path: Path) -> Tree:
    """The TOML file as a plain tree; ConfigError when it is missing or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"recipe {path} cannot be read ({error.strerror}); name an existing file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"recipe {path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"recipe {path} is not valid TOML: {error}") from None


def set_dotted(tree: Tree, override: str) -> None:
    """Set `a.b.c=value` in the tree. The value is read as TOML; what is not TOML is taken as a string."""
    key, equals, text = override.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not equals or not all(path):
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    *sections, last = path
    node = tree
    for section in sections:
        child = node.setdefault(section, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {section!r} is a value, not a section")
        node = cast(Tree, child)
    node[last] = _toml_value(text.strip())


def to_toml(settings: Settings) -> str:
    """The whole resolved tree as TOML, so that a run folder holds its own recipe. Unset values are left out."""
    return tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True))


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for a misspelt name, or `; known are a, b, c` when nothing is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(names)}"


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(kind: type[Settings], error: ValidationError) -> str:
    """One line for the first thing that is wrong."""
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    name = ".".join(path)
    if first["type"] == "extra_forbidden":
        return f"unknown key {name!r}{nearest(path[-1], _keys_at(kind, path[:-1]))}"
    if first["type"] == "value_error":
        reason = first["msg"].removeprefix("Value error, ")
        return f"{name}: {reason}" if name else reason
    return f"{name} = {first['input']!r}: {first['msg'].lower()}"


def _keys_at(kind: type[Settings], path: Sequence[str]) -> list[str]:
    """The keys that the section at `path` has; below a table of sections by name, a part of the path is a name."""
    section: Any = kind
    for part in path:
        if get_origin(section) is dict:
            section = get_args(section)[-1]
        else:
            field = _fields(section).get(part)
            section = field.annotation if field else None
    return list(_fields(section))


def _fields(section: object) -> Mapping[str, FieldInfo]:
    if isinstance(section, type) and issubclass(section, Settings):
        return section.model_fields
    return {}
