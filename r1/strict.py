"""YAML text -> dataclasses, strictly: no key twice, none unknown, every value of its field's type."""

import contextlib
import dataclasses
import typing
from typing import Any

import yaml

from r1.types import UserError, nearest


class _Loader(yaml.SafeLoader):
    """YAML in which no key stands twice; PyYAML would take the last one without a word."""

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)      # as written: `<<` is not merged yet
        keys = [k.value for k, _ in node.value if isinstance(k, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            twice = next(k for k in keys if keys.count(k) > 1)
            raise yaml.composer.ComposerError(None, None, f"the key {twice!r} stands twice", node.start_mark)
        return node


def read_yaml(text: str, where: str) -> Any:
    """The value of a YAML text. Raises UserError that begins with `where`."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as e:        # ValueError: 2024-13-45 is no date
        raise UserError(f"{where}: not valid YAML: {' '.join(str(e).split())}") from e


def build(cls, raw: Any, file: str, at: str, default: Any = None):
    """A dataclass from a mapping, checked key by key and type by type; what it does not name is as in `default`.

    `file` and `at` say where it stands."""
    if not isinstance(raw, dict):
        raise UserError(f"{file}: {at or 'the config'} must be a mapping, found {raw!r}")
    hints, values = typing.get_type_hints(cls), {}
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key, value in raw.items():
        where = f"{at}.{key}" if at else str(key)
        if key not in fields:
            raise UserError(f"{file}: unknown key {where!r}{nearest(str(key), list(fields))}")
        if dataclasses.is_dataclass(hints[key]):
            values[key] = build(hints[key], value, file, where, fields[key].default_factory())
        else:
            values[key] = convert(hints[key], value, file, where)
    for f in fields.values():
        if f.name not in values and f.default is f.default_factory:      # neither is there
            raise UserError(f"{file}: {at} lacks the key {f.name!r}")
    return dataclasses.replace(default, **values) if default else cls(**values)


def convert(hint: Any, value: Any, file: str, where: str) -> Any:
    """`value` as the annotated type; PyYAML reads 1e-6 as a string, so numbers are converted."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is dict and isinstance(value, dict):
        return {str(k): convert(args[1], v, file, f"{where}.{k}") for k, v in value.items()}
    if origin is list and isinstance(value, list):
        return [convert(args[0], v, file, f"{where}[{i}]") for i, v in enumerate(value)]
    good = {bool: bool, str: str, int: int, float: (int, float)}.get(hint, ())
    if isinstance(value, good) and not (isinstance(value, bool) and hint is not bool) or hint is float and isinstance(value, str):
        with contextlib.suppress(ValueError, OverflowError):      # "many", or too many digits
            return hint(value)
    word = {dict: "a mapping", list: "a list", int: "a whole number", float: "a number", bool: "true or false",
            str: "text"}.get(origin or hint, str(hint))
    raise UserError(f"{file}: {where} must be {word}, found {value!r}")
