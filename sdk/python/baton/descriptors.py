"""Descriptors of messages, and the files that travel with a workflow to define them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, FileDescriptor, ServiceDescriptor
from google.protobuf.message import Message


def descriptor_of(message: Message | type[Message]) -> Descriptor:
    """Returns the descriptor of a message or its class."""
    return cast("Descriptor", message.DESCRIPTOR)


def file_set(descriptors: Iterable[Descriptor | ServiceDescriptor]) -> descriptor_pb2.FileDescriptorSet:
    """Returns the files of some messages or services and all that those import, each once, imports first."""
    files: dict[str, FileDescriptor] = {}

    def add(file: FileDescriptor) -> None:
        if file.name in files:
            return
        for dependency in file.dependencies:
            add(dependency)
        files[file.name] = file

    for descriptor in descriptors:
        add(descriptor.file)
    message = descriptor_pb2.FileDescriptorSet()
    for file in files.values():
        file.CopyToProto(message.file.add())
    return message
