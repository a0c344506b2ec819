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


def check_fields(name: str, node: yaml.Node, descriptor: Descriptor) -> None:
    """Refuses fields that the message has not, keys that stand twice, and plain values that are no text where text is
    wanted. Raises CommandFailed with the file's name and the line."""
    if descriptor.full_name.startswith("google.protobuf."):
        _check_keys(name, node)
        return
    if not isinstance(node, yaml.MappingNode):
        _fail(name, node, f"{descriptor.name} is written as a mapping of its fields")
        return
    _check_keys(name, node, deep=False)
    by_name = {field.name: field for field in descriptor.fields}
    by_name |= {field.json_name: field for field in descriptor.fields}
    for key, value in node.value:
        field = by_name.get(key.value)
        if field is None:
            hint = closest(str(key.value), [each.name for each in descriptor.fields])
            _fail(name, key, f"{descriptor.name} has no field {key.value}{hint}")
        elif value.tag != _NULL_TAG:
            _check_field(name, value, field)


def _check_field(name: str, node: yaml.Node, field: FieldDescriptor) -> None:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        _check_keys(name, node, deep=False)
        if not isinstance(node, yaml.MappingNode):
            _fail(name, node, f"{field.name} is a mapping")
            return
        for _, value in node.value:
            _check_value(name, value, kind.fields_by_name["value"])
    elif field.is_repeated:
        if not isinstance(node, yaml.SequenceNode):
            _fail(name, node, f"{field.name} is a list: put its elements in [brackets], or each after a dash")
            return
        for value in node.value:
            _check_value(name, value, field)
    else:
        _check_value(name, node, field)


def _check_value(name: str, node: yaml.Node, field: FieldDescriptor) -> None:
    if field.message_type is not None:
        check_fields(name, node, field.message_type)
    elif field.type == FieldDescriptor.TYPE_STRING and node.tag != _STRING_TAG:
        _fail(name, node, f"{field.name} is text: put it in quotes")


def _check_keys(name: str, node: yaml.Node, *, deep: bool = True) -> None:
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                _fail(name, key, "a key is a plain word")
            if key.value in keys:
                _fail(name, key, f"the key {key.value} stands twice")
            keys.add(key.value)
            if deep:
                _check_keys(name, value)
    elif isinstance(node, yaml.SequenceNode) and deep:
        for value in node.value:
            _check_keys(name, value)


def _fail(name: str, node: yaml.Node, text: str) -> None:
    raise CommandFailed(f"{name}:{node.start_mark.line + 1}: {text}")
