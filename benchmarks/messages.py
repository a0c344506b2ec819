"""Messages and services as descriptors, so that the benchmark needs no generated code. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_KINDS = {
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    "bytes": descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
    "int32": descriptor_pb2.FieldDescriptorProto.TYPE_INT32,
}


def file_of(package: str, messages: Mapping[str, Mapping[str, str]]) -> descriptor_pb2.FileDescriptorProto:
    """Builds a file of a package. A field's kind is a scalar or a message of the file, with `*` behind it repeated."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package.replace('.', '/')}/messages.proto", package=package, syntax="proto3"
    )
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for number, (field_name, kind) in enumerate(fields.items(), 1):
            field = message.field.add(name=field_name, number=number)
            field.label = field.LABEL_REPEATED if kind.endswith("*") else field.LABEL_OPTIONAL
            plain = kind.removesuffix("*")
            if plain in _KINDS:
                field.type = _KINDS[plain]
            else:
                field.type, field.type_name = field.TYPE_MESSAGE, f".{package}.{plain}"
    return file


def classes_of(file: descriptor_pb2.FileDescriptorProto) -> dict[str, Any]:
    """Adds a file to the default pool and returns its message classes by name."""
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        message.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{message.name}"))
        for message in file.message_type
    }
