"""Settings: frozen dataclasses whose fields say what they are, and the one reader that checks values.

Every configuration is such a tree: the mapper's and the node's parameters, a network's config.json, the YAML
of a training run.  A value must have its field's type (int: a whole number, float: any number), lie in its
range and be one of its choices; NaN is never valid.  An invalid value is one UserError that names the key.  A
field that holds a section may have `key`, as below, and `inline` in its metadata: the section's settings then
have no prefix in flat names.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import Field, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from fast3r_ros.errors import UserError
from fast3r_ros.files import one_line, read_text, unique_keys

_YAML_BYTES, _YAML_DEPTH = 1 << 15, 10
_MOST_ITEMS = 1000  # in a list
_LARGEST = 1e12  # for a number without a range


def parameter(
    default: Any,
    description: str = "",
    *,
    range: tuple[float, float] | None = None,
    choices: tuple[str, ...] | None = None,
    dynamic: bool = False,
    constant: bool = False,
    key: str = "",
) -> Any:
    """A dataclass field with a setting's description, range and choices.

    range: inclusive, of a number or of every number in a list; without one any finite number is valid.
    dynamic: may change at run time.  constant: no parameter of the ROS node, Python sets it.  key: the name
    in a file, if it differs from the field's.
    """
    metadata = {
        "description": description,
        "range": range,
        "choices": choices,
        "dynamic": dynamic,
        "constant": constant,
        "key": key,
    }
    return field(default=default, metadata=metadata)


def build(kind: type, content: Any, prefix: str) -> Any:
    """The settings `kind` from nested mappings; missing keys keep their defaults.

    prefix: put before the keys in errors, such as `train.yaml: `.  Raises UserError for the first value
    that cannot be used.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{prefix.rstrip(':. ')} is {shown(content)}, expected a mapping of keys to values")
    known = {item.metadata.get("key") or item.name: item for item in fields(kind)}
    unknown = [key for key in content if key not in known]
    if unknown:
        plain = isinstance(unknown[0], str) and unknown[0][:60].isidentifier()
        key = unknown[0][:60] if plain else shown(unknown[0])
        raise UserError(f"{prefix}{key} is not known; known are {', '.join(known)}")
    hints = _hints(kind)
    values = {
        item.name: _value(content[key], hints[item.name], item, prefix + key)
        for key, item in known.items()
        if key in content
    }
    try:
        return kind(**values)
    except UserError as error:  # of the rules between several settings
        raise UserError(f"{prefix}{error}") from error


def parameter_fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Field[Any], Any]]:
    """(dotted name, dataclass field, value) of every setting of a tree, in its order."""
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from parameter_fields(value, _inner(item, prefix))
        else:
            yield prefix + item.name, item, value


def from_flat(kind: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """The settings `kind` from dotted names; missing keys keep their defaults.  Raises UserError."""
    arguments = {}
    for item in fields(kind):
        hint, name = _hints(kind)[item.name], prefix + item.name
        if is_dataclass(hint):
            arguments[item.name] = from_flat(typing.cast(type, hint), values, _inner(item, prefix))
        elif name in values:
            arguments[item.name] = _value(values[name], hint, item, name)
    return kind(**arguments)


def _inner(item: Field[Any], prefix: str) -> str:
    return prefix if item.metadata.get("inline") else f"{prefix}{item.name}."


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file of at most 32 KiB.  Raises UserError when it cannot be read.

    Aliases are rejected: some lines of them can expand to gigabytes when merged or printed.  So are repeated
    keys, of which YAML's reader would use the last one.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases (*name) are not allowed; write the value in each place")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            unique_keys([(key.value, None) for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
            return super().construct_mapping(node, deep)

    text = read_text(path, _YAML_BYTES)
    depth = itertools.accumulate((letter in "[{") - (letter in "]}") for letter in text)
    if max(depth, default=0) > _YAML_DEPTH:  # the parser takes time in proportion to its square
        raise UserError(f"{path} cannot be read: it is nested too deeply")
    try:
        return yaml.load(text, Loader)
    except RecursionError as error:
        raise UserError(f"{path} cannot be read: it is nested too deeply") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the latter of dates and numbers
        raise UserError(f"{path} is not YAML: {one_line(error)}") from error


def shown(value: Any) -> str:
    """A value for a message, on one line and short whatever it is.

    Lists of lists are not looked into.
    """
    if isinstance(value, (str, bytes)):
        return repr(value[:60]) + ("…" if len(value) > 60 else "")
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a number of more than 30 digits"
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)) and len(value) <= 8 and not any(_nested(item) for item in value):
        return f"[{', '.join(shown(item) for item in value)}]"
    return f"a {type(value).__name__}" + (f" of {len(value)}" if hasattr(value, "__len__") else "")


def unknown_parameter(name: Any, known: Collection[str]) -> str:
    """A sentence on a name that does not exist: those it may have been meant for, or all."""
    meant = similar_names(name, known)
    if meant:
        return f"unknown parameter {shown(name)}; did you mean {' or '.join(meant)}?"
    return f"unknown parameter {shown(name)}; known are {', '.join(sorted(known))}"


def similar_names(name: Any, known: Collection[str]) -> list[str]:
    """The dotted names that `name` may have been meant for, as a whole or by the last word; at most three."""
    whole = {each.rpartition(".")[2]: each for each in known} | {each: each for each in known}
    near = difflib.get_close_matches(str(name)[:60], whole, n=3, cutoff=0.7)
    return list(dict.fromkeys(whole[each] for each in near))


def _nested(value: Any) -> bool:
    return not isinstance(value, (str, bytes, int, float, type(None)))


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _value(value: Any, hint: Any, item: Field[Any], name: str) -> Any:
    if is_dataclass(hint):
        kind = typing.cast(type, hint)
        return value if isinstance(value, kind) else build(kind, value, f"{name}.")
    if typing.get_origin(hint) is not tuple:
        return _single(value, hint, item, name)
    kinds = typing.get_args(hint)
    endless = kinds[-1] is Ellipsis
    if not isinstance(value, (list, tuple)) or not (endless or len(value) == len(kinds)):
        wanted = "a list" if endless else f"a list of {len(kinds)} values"
        raise UserError(f"{name} is {shown(value)}, expected {wanted}")
    if len(value) > _MOST_ITEMS:
        raise UserError(f"{name} has {len(value)} items, of which it may have {_MOST_ITEMS}")
    each = [kinds[0]] * len(value) if endless else kinds
    return tuple(
        _value(one, one_kind, item, f"{name}[{number}]")
        for number, (one, one_kind) in enumerate(zip(value, each, strict=True))
    )


def _single(value: Any, kind: type, item: Field[Any], name: str) -> Any:
    if kind is float and isinstance(value, str):  # YAML takes 1e-4 for text, JSON has none for infinity
        value = _number(value)
    whole = kind is int and isinstance(value, float) and value.is_integer()
    number = kind is float and isinstance(value, int)
    if isinstance(value, bool) != (kind is bool) or not (isinstance(value, kind) or whole or number):
        raise UserError(f"{name} is {shown(value)}; it must be of type {kind.__name__}")
    choices, bounds = item.metadata.get("choices"), item.metadata.get("range")
    if kind in (int, float):
        low, high = bounds or (-_LARGEST, _LARGEST)
        if not low <= value <= high:  # so that NaN fails, too
            raise UserError(f"{name} is {shown(value)}; it must be between {low:g} and {high:g}")
    elif choices and value not in choices:
        allowed = ("one of " if len(choices) > 1 else "") + ", ".join(choices)
        raise UserError(f"{name} is {shown(value)}; it must be {allowed}")
    return kind(value)


def _number(text: str) -> float | str:
    try:
        return float(text[:60])
    except ValueError:
        return text
