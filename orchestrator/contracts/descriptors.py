"""Contracts: what a worker serves, read from its descriptors, and the pool of types that a workflow is checked against.

Every pool here is private: the process-wide default pool refuses a second file of the same name, and two workers may
well bring different ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from google.protobuf import (
    any_pb2,
    api_pb2,
    descriptor_pb2,
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    message_factory,
    source_context_pb2,
    struct_pb2,
    timestamp_pb2,
    type_pb2,
    wrappers_pb2,
)
from google.protobuf.descriptor import Descriptor, EnumDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import (
    FileDescriptorProto,
    FileDescriptorSet,
    MethodOptions,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message

from orchestrator.contracts.descriptor_faults import Clash, find_clash, find_unresolved
from orchestrator.contracts.violations import closest_dotted, nearest

_NOT_OF_THE_CONTRACT = ("grpc.", "baton.worker.v1.")
"""Served beside a worker's own services."""

CONTRACT_LIMIT_BYTES = 4 * 1024 * 1024
"""Largest contract, serialized."""

_WELL_KNOWN = (
    any_pb2,
    api_pb2,
    descriptor_pb2,
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    source_context_pb2,
    struct_pb2,
    timestamp_pb2,
    type_pb2,
    wrappers_pb2,
)


def _runtime_file(module: object) -> FileDescriptorProto:
    return FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)  # type: ignore[attr-defined]


WELL_KNOWN_FILES: Mapping[str, FileDescriptorProto] = {
    file.name: file for file in (_runtime_file(module) for module in _WELL_KNOWN)
}
"""The google/protobuf files of the protobuf runtime, by name."""


class InvalidContract(Exception):
    """The descriptors are not a closed, valid set, hold no service or exceed the limit; the text is fit for callers.

    `clash` is set where two files define the same.
    """

    def __init__(self, message: str, clash: Clash | None = None) -> None:
        super().__init__(message)
        self.clash = clash


@dataclass(frozen=True, slots=True)
class MethodSummary:
    """One method of a service; `idempotency_level` is a name of google.protobuf.MethodOptions.IdempotencyLevel."""

    name: str
    input_type: str
    output_type: str
    idempotency_level: str
    client_streaming: bool
    server_streaming: bool


@dataclass(frozen=True, slots=True)
class ServiceSummary:
    """One service of a contract, by full name."""

    name: str
    methods: tuple[MethodSummary, ...]


@dataclass(frozen=True, slots=True)
class Contract:
    """What a worker serves.

    `digest` is 64 hex digits over the files and the services; `files` is a serialized FileDescriptorSet in dependency
    order, without source information.
    """

    digest: str
    files: bytes
    services: tuple[ServiceSummary, ...]

    def methods(self) -> Iterable[tuple[str, MethodSummary]]:
        """Yields every method with its full name, `package.Service/Method`."""
        for service in self.services:
            for method in service.methods:
                yield f"{service.name}/{method.name}", method


def read_contract(files: Iterable[FileDescriptorProto], services: Sequence[str] = ()) -> Contract:
    """Reads a contract from descriptors.

    `services` are the full names to take; without any, all but those of gRPC itself and the work stream. Files of
    google/protobuf that are missing are taken from the runtime. Raises InvalidContract.
    """
    stripped = _stripped(files)
    ordered = order_files(stripped)
    total = sum(file.ByteSize() for file in ordered)
    if total > CONTRACT_LIMIT_BYTES:
        raise InvalidContract(f"the contract has {total} bytes; the limit is {CONTRACT_LIMIT_BYTES}")
    pool = build_pool(ordered)
    names = list(dict.fromkeys(services)) or [
        full_name
        for file in ordered
        for full_name in (_qualify(file.package, service.name) for service in file.service)
        if not full_name.startswith(_NOT_OF_THE_CONTRACT)
    ]
    if not names:
        raise InvalidContract("the contract holds no service besides those of gRPC itself")
    summaries = tuple(_summary(pool, name, ordered) for name in sorted(names))
    digest = hashlib.sha256()
    for file in sorted(ordered, key=lambda one: one.name):
        encoded = file.SerializeToString(deterministic=True)
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    for summary in summaries:
        digest.update(b"\0" + summary.name.encode())
    return Contract(
        digest.hexdigest(),
        FileDescriptorSet(file=ordered).SerializeToString(deterministic=True),
        summaries,
    )


def _stripped(files: Iterable[FileDescriptorProto]) -> dict[str, FileDescriptorProto]:
    found: dict[str, FileDescriptorProto] = {}
    for file in files:
        copy = FileDescriptorProto()
        copy.CopyFrom(file)
        copy.ClearField("source_code_info")
        known = found.setdefault(copy.name, copy)
        if known is not copy and known != copy:
            raise InvalidContract(f"the file {copy.name} is there twice, with different content")
        if copy.name in WELL_KNOWN_FILES and copy.service:
            raise InvalidContract(f"the file {copy.name} is protobuf's own and holds no service; give it another name")
    return found


def order_files(files: Mapping[str, FileDescriptorProto]) -> list[FileDescriptorProto]:
    """Returns the files so that each follows those it imports, adding google/protobuf files from the runtime.

    Raises InvalidContract for an import that is missing or goes in a circle.
    """
    ordered: list[FileDescriptorProto] = []
    states: dict[str, bool] = {}  # False while its imports are being added, True once it is in `ordered`
    for root in sorted(files):
        pending = [(root, "")]
        while pending:
            name, importer = pending[-1]
            if states.get(name):
                pending.pop()
                continue
            file = files.get(name) or WELL_KNOWN_FILES.get(name)
            if file is None:
                raise InvalidContract(f"the file {name}, imported by {importer or 'the contract'}, is missing")
            if name in states:
                states[name] = True
                ordered.append(file)
                pending.pop()
                continue
            states[name] = False
            for imported in reversed(file.dependency):
                if states.get(imported) is False:
                    raise InvalidContract(f"the files {name} and {imported} import each other")
                pending.append((imported, name))
    return ordered


def build_pool(ordered: Iterable[FileDescriptorProto]) -> DescriptorPool:
    """Returns a new pool of the files, given in dependency order. Raises InvalidContract naming the file at fault."""
    pool = DescriptorPool()
    added: list[FileDescriptorProto] = []
    for file in ordered:
        try:
            pool.AddSerializedFile(file.SerializeToString())
            # A pool links a file when it is first asked for it; asking now finds what does not resolve.
            pool.FindFileByName(file.name)
        except (TypeError, ValueError, KeyError) as error:
            raise _refused(file, added) from error
        added.append(file)
    return pool


def _refused(file: FileDescriptorProto, before: Sequence[FileDescriptorProto]) -> InvalidContract:
    head = f"the file {file.name} is not a valid set of descriptors"
    clash = find_clash(file, before)
    if clash is not None:
        return InvalidContract(f"{head}: it defines {clash.text}; {clash.cure}", clash)
    cure = find_unresolved(file, before) or "compile it anew with protoc"
    return InvalidContract(f"{head}: {cure}")


def _qualify(package: str, name: str) -> str:
    return f"{package}.{name}" if package else name


def _summary(pool: DescriptorPool, name: str, ordered: Sequence[FileDescriptorProto]) -> ServiceSummary:
    try:
        service = pool.FindServiceByName(name)
    except KeyError:
        known = [_qualify(file.package, one.name) for file in ordered for one in file.service]
        raise InvalidContract(f"the contract has no service {name}{closest_dotted(name, known)}") from None
    return ServiceSummary(
        name,
        tuple(
            MethodSummary(
                method.name,
                method.input_type.full_name,
                method.output_type.full_name,
                MethodOptions.IdempotencyLevel.Name(method.GetOptions().idempotency_level),
                method.client_streaming,
                method.server_streaming,
            )
            for method in service.methods
        ),
    )


class TypePool:
    """The types that one workflow is checked against, in a pool of its own."""

    __slots__ = ("_classes", "_constants", "_enums", "_names", "pool")

    def __init__(self, ordered: Sequence[FileDescriptorProto]) -> None:
        """Builds the pool from files in dependency order; raises InvalidContract."""
        self.pool = build_pool(ordered)
        self._names = [name for file in ordered for name in message_names(file)]
        self._enums = [name for file in ordered for name in enum_names(file)]
        self._constants: dict[str, list[str]] | None = None
        self._classes: dict[str, type[Message]] = {}

    def add(self, file: FileDescriptorProto) -> None:
        """Adds a file whose imports are there. No hint names its messages. Raises InvalidContract."""
        try:
            self.pool.AddSerializedFile(file.SerializeToString())
            self.pool.FindFileByName(file.name)
        except (TypeError, ValueError, KeyError) as error:
            raise InvalidContract(f"the file {file.name} cannot be added to the types of the workflow") from error

    def find_message(self, name: str) -> Descriptor | None:
        """Returns the message type of this full name, or None."""
        try:
            return self.pool.FindMessageTypeByName(name)
        except KeyError:
            return None

    def find_enum(self, name: str) -> EnumDescriptor | None:
        """Returns the enum of this full name, or None."""
        try:
            return self.pool.FindEnumTypeByName(name)
        except KeyError:
            return None

    def enum_values(self, name: str) -> list[str] | None:
        """Returns the names of the values of the enum of this full name; None where there is no such enum."""
        enum = self.find_enum(name)
        return None if enum is None else [value.name for value in enum.values]

    def constants_called(self, value: str) -> list[str]:
        """Returns the full names, as expressions write them, of the enum values of this name."""
        return self._all_constants().get(value, [])

    def closest_constant(self, name: str) -> str:
        """Returns the enum value whose full name is closest to `name`, or ""."""
        enum, _, value = name.rpartition(".")
        same = {one.rpartition(".")[0].rpartition(".")[2]: one for one in self.constants_called(value)}
        near = nearest(enum.rpartition(".")[2], same)
        if near:
            return near
        enums = {one.rpartition(".")[2]: one for one in self._enums}
        found = enums.get(enum.rpartition(".")[2]) or nearest(enum.rpartition(".")[2], enums)
        return nearest(value, {one: f"{found}.{one}" for one in self.enum_values(found) or ()}) if found else ""

    def _all_constants(self) -> dict[str, list[str]]:
        if self._constants is None:
            self._constants = {}
            for enum in self._enums:
                for value in self.enum_values(enum) or ():
                    self._constants.setdefault(value, []).append(f"{enum}.{value}")
        return self._constants

    def find_method(self, name: str) -> MethodDescriptor | None:
        """Returns the method `package.Service/Method`, or None."""
        service_name, _, method_name = name.partition("/")
        try:
            service = self.pool.FindServiceByName(service_name)
        except KeyError:
            return None
        return service.methods_by_name.get(method_name)

    def new(self, descriptor: Descriptor | None) -> Message:
        """Returns a new, empty message of a type of this pool."""
        assert descriptor is not None
        return self.message_class(descriptor)()

    def message_class(self, descriptor: Descriptor) -> type[Message]:
        """Returns the Python class of a message type of this pool."""
        found = self._classes.get(descriptor.full_name)
        if found is None:
            found = self._classes[descriptor.full_name] = message_factory.GetMessageClass(descriptor)
        return found

    def closest_message(self, name: str) -> str:
        """Returns a hint at the message type closest to `name`, or ""."""
        return closest_dotted(name, self._names)


def enum_names(file: FileDescriptorProto) -> Iterable[str]:
    """Yields the full names of the enums of a file, nested ones too."""
    yield from (_qualify(file.package, enum.name) for enum in file.enum_type)
    pending = [(_qualify(file.package, message.name), message) for message in file.message_type]
    while pending:
        name, message = pending.pop()
        yield from (f"{name}.{enum.name}" for enum in message.enum_type)
        pending.extend((f"{name}.{nested.name}", nested) for nested in message.nested_type)


def message_names(file: FileDescriptorProto) -> Iterable[str]:
    """Yields the full names of the messages of a file, nested ones too, map entries left out."""
    pending = [(_qualify(file.package, message.name), message) for message in reversed(file.message_type)]
    while pending:
        name, message = pending.pop()
        yield name
        pending.extend(
            (f"{name}.{nested.name}", nested) for nested in message.nested_type if not nested.options.map_entry
        )
