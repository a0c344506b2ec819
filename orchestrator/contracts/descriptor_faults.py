"""Why protobuf refuses a file of descriptors, found anew from the descriptors: no text of the library is passed on.

Looked for only once a file was refused: names and extension numbers that are taken, names that nothing defines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)


@dataclass(frozen=True, slots=True)
class Definition:
    """One thing that a file defines. `key` is what nothing else may have: a full name or an extension number."""

    key: str
    what: str


@dataclass(frozen=True, slots=True)
class Clash:
    """Two files define the same. `text` says what, without naming owners; `cure` what to do."""

    first_file: str
    second_file: str
    text: str
    cure: str


def find_clash(file: FileDescriptorProto, before: Sequence[FileDescriptorProto]) -> Clash | None:
    """Returns what of `file` is defined twice, in it or in a file of `before`; None where nothing is."""
    known = {one.key: (one, other.name) for other in before for one in _definitions(other)}
    for one in _definitions(file):
        found = known.get(one.key)
        if found is None:
            known[one.key] = (one, file.name)
            continue
        first, first_file = found
        text = f"{one.key}, as {first.what} ({first_file}) and as {one.what} ({file.name})"
        if one.key.startswith("the number"):
            cure = "give one of them another number"
        elif "value of the enum" in first.what + one.what:
            cure = "the values of an enum stand beside it, not within it: rename one of them"
        else:
            cure = "rename one of them, or move it to another package"
        return Clash(first_file, file.name, text, cure)
    return None


def find_unresolved(file: FileDescriptorProto, before: Sequence[FileDescriptorProto]) -> str:
    """Returns which name in `file` nothing defines, or ""."""
    known = {one.key.strip("`") for other in (*before, file) for one in _definitions(other)}
    for user, used in _uses(file):
        if used.startswith(".") and used[1:] not in known:
            return f"`{user}` names `{used[1:]}`, which no file that comes with it defines"
    return ""


def _definitions(file: FileDescriptorProto) -> Iterator[Definition]:
    prefix = f"{file.package}." if file.package else ""
    for message in file.message_type:
        yield from _of_message(prefix, message)
    for enum in file.enum_type:
        yield from _of_enum(prefix, enum)
    for extension in file.extension:
        yield from _of_extension(prefix, extension)
    for service in file.service:
        yield _named(prefix, service.name, "a service")
        for method in service.method:
            yield _named(f"{prefix}{service.name}.", method.name, "a method")


def _of_message(prefix: str, message: DescriptorProto) -> Iterator[Definition]:
    yield _named(prefix, message.name, "a message")
    inner = f"{prefix}{message.name}."
    for field in message.field:
        yield _named(inner, field.name, "a field")
        yield Definition(f"the number {field.number} of {inner[:-1]}", f"the field {field.name}")
    for oneof in message.oneof_decl:
        yield _named(inner, oneof.name, "a oneof")
    for nested in message.nested_type:
        yield from _of_message(inner, nested)
    for enum in message.enum_type:
        yield from _of_enum(inner, enum)
    for extension in message.extension:
        yield from _of_extension(inner, extension)


def _of_enum(prefix: str, enum: EnumDescriptorProto) -> Iterator[Definition]:
    yield _named(prefix, enum.name, "an enum")
    for value in enum.value:
        yield _named(prefix, value.name, f"a value of the enum {prefix}{enum.name}")


def _of_extension(prefix: str, extension: FieldDescriptorProto) -> Iterator[Definition]:
    yield _named(prefix, extension.name, "an extension")
    extendee = extension.extendee.removeprefix(".")
    yield Definition(f"the number {extension.number} of {extendee}", f"the extension {prefix}{extension.name}")


def _named(prefix: str, name: str, what: str) -> Definition:
    return Definition(f"`{prefix}{name}`", what)


def _uses(file: FileDescriptorProto) -> Iterator[tuple[str, str]]:
    """Yields what uses a type, and the name of that type as it is written."""
    prefix = f"{file.package}." if file.package else ""
    pending = [(f"{prefix}{message.name}", message) for message in file.message_type]
    while pending:
        name, message = pending.pop()
        yield from ((f"{name}.{field.name}", field.type_name) for field in message.field if field.type_name)
        yield from ((f"{name}.{one.name}", one.extendee) for one in message.extension)
        yield from ((f"{name}.{one.name}", one.type_name) for one in message.extension if one.type_name)
        pending.extend((f"{name}.{nested.name}", nested) for nested in message.nested_type)
    for extension in file.extension:
        yield prefix + extension.name, extension.extendee
        if extension.type_name:
            yield prefix + extension.name, extension.type_name
    for service in file.service:
        for method in service.method:
            yield f"{prefix}{service.name}.{method.name}", method.input_type
            yield f"{prefix}{service.name}.{method.name}", method.output_type
