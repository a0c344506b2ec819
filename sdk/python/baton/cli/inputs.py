"""The typed input of a run, or message of a signal, from JSON and from `-i key=value`. Knows messages, not servers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from google.protobuf import any_pb2, json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from baton.cli.outcomes import CommandFailed, ExitCode
from baton.cli.types import Types, closest

_TEXT_KINDS = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_ENUM)
_UNKNOWN_FIELD = re.compile(r'Message type "(?P<type>[^"]*)" has no field named "(?P<field>[^"]*)"')


async def build_input(type_name: str, document: Any, settings: Iterable[str], types: Types) -> any_pb2.Any | None:
    """Makes the input of the type from a JSON document (None: none) and settings `path=value`, which come last.

    Returns None where the workflow takes no input. Raises CommandFailed.
    """
    given = list(settings)
    if not type_name:
        if document is not None or given:
            raise CommandFailed("the workflow takes no input", "leave out --input and -i")
        return None
    packed = any_pb2.Any()
    packed.Pack(await build_message(type_name, document, given, types, "the workflow's input type"), deterministic=True)
    return packed


async def build_message(
    type_name: str, document: Any, settings: Iterable[str], types: Types, role: str = "the type of the signal"
) -> Message:
    """Makes a message of the type from a JSON document (None: none) and settings `path=value`, which come last.

    Raises CommandFailed; it says what `role` the type has.
    """
    given = list(settings)
    descriptor = await types.find(type_name)
    if descriptor is None:
        raise CommandFailed(
            f"the server knows no message {type_name}, {role}",
            "register the worker that has it, or give the workflow its `types`",
        )
    value = {} if document is None else document
    # The messages of protobuf itself have JSON forms of their own, such as a text for a time.
    if not isinstance(value, dict) and (given or not descriptor.full_name.startswith("google.protobuf.")):
        what = f"the input is not a {descriptor.full_name}: it is no JSON object"
        raise CommandFailed(what, "give its fields in {braces}", ExitCode.USAGE)
    _refuse_twice(given)
    for setting in given:
        _set(value, setting, descriptor)
    message = types.new_message(descriptor)
    try:
        types.parse(value, message)
    except json_format.ParseError as error:
        raise CommandFailed(_parse_fault(str(error), descriptor, value)) from None
    return message


def _refuse_twice(settings: Iterable[str]) -> None:
    given: set[str] = set()
    for setting in settings:
        path = setting.partition("=")[0]
        if path in given:
            raise CommandFailed(f"-i {path}: it is given twice", code=ExitCode.USAGE)
        given.add(path)


def _set(value: dict[str, Any], setting: str, descriptor: Descriptor) -> None:
    path, equals, text = setting.partition("=")
    if not equals or not path:
        raise CommandFailed(f"-i {setting}: give a field and its value, such as -i order_id=A-1")
    if any("\ud800" <= letter <= "\udfff" for letter in setting):
        raise CommandFailed(f"-i {path}: it is not UTF-8")
    names = path.split(".")
    kind: Descriptor | None = descriptor
    for position, name in enumerate(names):
        field = None
        if kind is not None and not kind.GetOptions().map_entry:
            field = kind.fields_by_name.get(name) or kind.fields_by_camelcase_name.get(name)
            if field is None:
                hint = closest(name, list(kind.fields_by_name))
                raise CommandFailed(f"-i {path}: {kind.full_name} has no field {name}{hint}")
        elif kind is not None:
            field = kind.fields_by_name["value"]
        if position == len(names) - 1:
            value[name] = _value(text, field)
            return
        value = value.setdefault(name, {})
        kind = field.message_type if field is not None else None
        if not isinstance(value, dict) or kind is None:
            raise CommandFailed(f"-i {path}: {'.'.join(names[: position + 1])} has no fields")


def _value(text: str, field: FieldDescriptor | None) -> Any:
    """Reads a value: text as it is where the field holds text, else JSON, else text (such as a timestamp)."""
    plain = field is not None and field.type in _TEXT_KINDS and not field.is_repeated
    if plain:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _parse_fault(text: str, descriptor: Descriptor, value: Any) -> str:
    unknown = _UNKNOWN_FIELD.search(text)
    if unknown is None:
        return f"the input is not a {descriptor.full_name}: {text}"
    kind = _message_named(descriptor, unknown["type"], set())
    names = list(kind.fields_by_name) if kind is not None else []
    known = f" (fields: {', '.join(names)})" if names else ""
    return f"the input: {unknown['type']} has no field {unknown['field']}{closest(unknown['field'], names)}{known}"


def _message_named(descriptor: Descriptor, name: str, seen: set[str]) -> Descriptor | None:
    if descriptor.full_name == name:
        return descriptor
    seen.add(descriptor.full_name)
    for field in descriptor.fields:
        if field.message_type is not None and field.message_type.full_name not in seen:
            found = _message_named(field.message_type, name, seen)
            if found is not None:
                return found
    return None
