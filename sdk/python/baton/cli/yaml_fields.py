"""Checks the fields of a message written as YAML, so that a slip is told with its line and the closest valid name.

Only names and the kinds of plain values are looked at; everything else is left to protobuf and the server.
"""

from __future__ import annotations

import yaml
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from baton.cli.outcomes import CommandFailed
from baton.cli.types import closest

_STRING_TAG = "tag:yaml.org,2002:str"
_NULL_TAG = "tag:yaml.org,2002:null"
_NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


_BINDING = "a binding is written as {path: input.name}, {literal: Ada} or {expression: …}"


def check_fields(name: str, node: yaml.Node, descriptor: Descriptor, path: str = "") -> None:
    """Refuses fields that the message at `path` has not, keys that stand twice, and plain values that are no text where
    text is wanted. Raises CommandFailed with the file's name, the line and the path."""
    if descriptor.full_name == "google.protobuf.Duration" and node.tag in _NUMBER_TAGS:
        _fail(name, node, path, f'a length of time is text with its unit: write "{node.value}s"')
    if descriptor.full_name.startswith("google.protobuf."):
        _check_keys(name, node, path)
        return
    if not isinstance(node, yaml.MappingNode):
        written = f"{descriptor.name} is written as a mapping of its fields"
        _fail(name, node, path, _BINDING if descriptor.full_name == "baton.v1.Binding" else written)
        return
    _check_keys(name, node, path, deep=False)
    by_name = {field.name: field for field in descriptor.fields}
    by_name |= {field.json_name: field for field in descriptor.fields}
    for key, value in node.value:
        field = by_name.get(key.value)
        if field is None:
            hint = closest(str(key.value), [each.name for each in descriptor.fields])
            _fail(name, key, path, f"{descriptor.name} has no field {key.value}{hint}")
        elif value.tag != _NULL_TAG:
            _check_field(name, value, field, f"{path}.{field.name}" if path else field.name)


def _check_field(name: str, node: yaml.Node, field: FieldDescriptor, path: str) -> None:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        _check_keys(name, node, path, deep=False)
        if not isinstance(node, yaml.MappingNode):
            _fail(name, node, path, f"{field.name} is a mapping")
            return
        for key, value in node.value:
            _check_value(name, value, kind.fields_by_name["value"], f'{path}["{key.value}"]')
    elif field.is_repeated:
        if not isinstance(node, yaml.SequenceNode):
            _fail(name, node, path, f"{field.name} is a list: put its elements in [brackets], or each after a dash")
            return
        for position, value in enumerate(node.value):
            _check_value(name, value, field, f"{path}[{position}]")
    else:
        _check_value(name, node, field, path)


def _check_value(name: str, node: yaml.Node, field: FieldDescriptor, path: str) -> None:
    if field.message_type is not None:
        check_fields(name, node, field.message_type, path)
    elif field.type == FieldDescriptor.TYPE_STRING and node.tag != _STRING_TAG:
        _fail(name, node, path, f"{field.name} is text: put it in quotes")
    elif field.enum_type is not None and node.tag == _STRING_TAG:
        _check_enum(name, node, path, [each.name for each in field.enum_type.values if each.number])


def _check_enum(name: str, node: yaml.Node, path: str, known: list[str]) -> None:
    if node.value not in known and not node.value.isdecimal() and not node.value.endswith("_UNSPECIFIED"):
        _fail(name, node, path, f"{node.value} is none of {', '.join(known)}")


def _check_keys(name: str, node: yaml.Node, path: str, *, deep: bool = True) -> None:
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                _fail(name, key, path, "a key is a plain word")
            if key.value in keys:
                _fail(name, key, path, f"the key {key.value} stands twice")
            keys.add(key.value)
            if deep:
                _check_keys(name, value, path)
    elif isinstance(node, yaml.SequenceNode) and deep:
        for value in node.value:
            _check_keys(name, value, path)


def _fail(name: str, node: yaml.Node, path: str, text: str) -> None:
    raise CommandFailed(f"{name}:{node.start_mark.line + 1}: {f'{path}: ' if path else ''}{text}")
