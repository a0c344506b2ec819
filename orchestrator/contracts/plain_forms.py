"""Well-known types whose JSON form is not an object of their fields, as messages that have the plain form.

A binding may set one field of such a type, such as `seconds` of a Timestamp. No literal is parsed here.
"""

from __future__ import annotations

from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from orchestrator.contracts.descriptors import WELL_KNOWN_FILES, build_pool, order_files

_SPECIAL = ("any", "duration", "field_mask", "struct", "timestamp", "wrappers")
_PACKAGE = "plain"


def plain_form(full_name: str) -> Message | None:
    """Returns a new message with the same fields as this well-known type and the JSON form of any other message.

    Its encoding is that of the well-known type. None where the type has no JSON form of its own.
    """
    name = full_name.removeprefix("google.protobuf.")
    return GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))() if name in _NAMES else None


def _plain(message: DescriptorProto) -> DescriptorProto:
    plain = DescriptorProto()
    plain.CopyFrom(message)
    entries = {f".google.protobuf.{message.name}.{entry.name}": entry.name for entry in message.nested_type}
    for field in plain.field:
        if field.type_name in entries:
            field.type_name = f".{_PACKAGE}.{message.name}.{entries[field.type_name]}"
    return plain


def _build() -> tuple[frozenset[str], DescriptorPool]:
    sources = {f"google/protobuf/{name}.proto": WELL_KNOWN_FILES[f"google/protobuf/{name}.proto"] for name in _SPECIAL}
    plain = FileDescriptorProto(name="plain.proto", package=_PACKAGE, syntax="proto3", dependency=sorted(sources))
    plain.message_type.extend(_plain(message) for file in sources.values() for message in file.message_type)
    names = frozenset(message.name for message in plain.message_type)
    return names, build_pool(order_files({**sources, plain.name: plain}))


_NAMES, _POOL = _build()
