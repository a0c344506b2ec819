"""Reads a worker's descriptors by gRPC server reflection. Says nothing about what they mean (see contracts).

Reflection v1 and v1alpha have the same messages, so the v1alpha classes serve for both. Servers differ in what they
answer: some send a file with all that it imports, some only the file asked for, and some leave out files that hold
nothing but options.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter

import grpc
import grpc.aio
from google.protobuf import (
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
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from orchestrator.domain.errors import InvalidContract, ReflectionUnavailable, WorkerUnreachable
from orchestrator.outbound.channels import CONNECT_TIMEOUT_SECONDS, Channels

TIMEOUT_SECONDS = 10.0
FILES_LIMIT = 2_000
TOTAL_LIMIT_BYTES = 4 * 1024 * 1024

_PATHS = (
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)
# Served beside a worker's own services, and no part of its contract.
_NOT_OF_THE_CONTRACT = ("grpc.reflection.", "grpc.health.", "grpc.channelz.", "grpc.admin.")
_WELL_KNOWN_FILES: dict[str, bytes] = {
    module.DESCRIPTOR.name: module.DESCRIPTOR.serialized_pb
    for module in (
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
}

_Stream = grpc.aio.StreamStreamCall[ServerReflectionRequest, ServerReflectionResponse]


async def read_descriptors(channels: Channels, address: str) -> list[FileDescriptorProto]:
    """Reads the files of all services at `address` and all that these import, each after what it imports.

    Takes at most 10 s, 2,000 files and 4 MiB. Errors: WorkerUnreachable, ReflectionUnavailable (none is served, or it
    answers with errors), InvalidContract (the files are malformed, not closed, too many or too large).
    """
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            with channels.hold(address) as connection:
                if not await connection.wait_ready(CONNECT_TIMEOUT_SECONDS):
                    raise WorkerUnreachable(f"{address} could not be reached; is the worker running there?")
                for path in _PATHS:
                    files = await _read_with(connection.channel, path, address)
                    if files is not None:
                        return files
    except TimeoutError:
        raise ReflectionUnavailable(
            f"The reflection of {address} did not end within {TIMEOUT_SECONDS:.0f} s; upload the contract."
        ) from None
    raise ReflectionUnavailable(f"{address} serves no reflection; add it to the server, or upload the contract.")


async def _read_with(channel: grpc.aio.Channel, path: str, address: str) -> list[FileDescriptorProto] | None:
    """Reads all files by the reflection at `path`; None where the server does not have it."""
    open_stream: grpc.aio.StreamStreamMultiCallable[ServerReflectionRequest, ServerReflectionResponse] = (
        channel.stream_stream(
            path,
            request_serializer=ServerReflectionRequest.SerializeToString,
            response_deserializer=ServerReflectionResponse.FromString,
        )
    )
    stream = open_stream()
    task = asyncio.current_task()
    cancels_before = task.cancelling() if task is not None else 0
    try:
        return await _Reading(stream, address).read()
    except _NotServed:
        return None
    except grpc.aio.AioRpcError as error:
        _explain(error.code(), address)
        return None
    except asyncio.InvalidStateError:  # Written after the server had ended the stream.
        _explain(await stream.code(), address)
        return None
    except asyncio.CancelledError:
        if task is None or task.cancelling() > cancels_before:
            raise
        raise WorkerUnreachable(f"The connection to {address} was closed.") from None
    finally:
        stream.cancel()


def _explain(code: grpc.StatusCode, address: str) -> None:
    """Returns None where `code` says that there is no such reflection; else raises what it means."""
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return
    if code is grpc.StatusCode.UNAVAILABLE:
        raise WorkerUnreachable(f"The connection to {address} was lost while its contract was read.") from None
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        raise InvalidContract(f"An answer of the reflection of {address} is larger than 4 MiB.") from None
    raise ReflectionUnavailable(
        f"The reflection of {address} answered {code.name}; correct it, or upload the contract."
    ) from None


class _NotServed(Exception):
    """The server does not have this version of the reflection service."""


class _Reading:
    """One exchange with a reflection service: asks for a file after the other until nothing is missing."""

    def __init__(self, stream: _Stream, address: str) -> None:
        self._stream = stream
        self._address = address
        self._files: dict[str, FileDescriptorProto] = {}
        self._total_bytes = 0
        self._imported: list[str] = []
        self._absent: set[str] = set()

    async def read(self) -> list[FileDescriptorProto]:
        for service in await self._list_services():
            if not service.startswith(_NOT_OF_THE_CONTRACT) and not self._has_service(service):
                answer = await self._ask(ServerReflectionRequest(file_containing_symbol=service))
                if answer.WhichOneof("message_response") != "file_descriptor_response":
                    raise ReflectionUnavailable(
                        f"The reflection of {self._address} lists {service} but has no file of it; upload the contract."
                    )
                self._keep(answer)
        while self._imported:
            name = self._imported.pop()
            if name not in self._files and name not in self._absent:
                await self._fetch(name)
        for file in self._files.values():
            _drop_imports(file, self._absent)
        self._refuse_unresolved()
        return self._in_order()

    async def _list_services(self) -> list[str]:
        answer = await self._ask(ServerReflectionRequest(list_services="*"))
        if answer.WhichOneof("message_response") != "list_services_response":
            raise ReflectionUnavailable(f"The reflection of {self._address} lists no services; upload the contract.")
        return [service.name for service in answer.list_services_response.service]

    async def _ask(self, request: ServerReflectionRequest) -> ServerReflectionResponse:
        await self._stream.write(request)
        answer = await self._stream.read()
        if isinstance(answer, ServerReflectionResponse):
            return answer
        _explain(await self._stream.code(), self._address)
        raise _NotServed

    def _has_service(self, service: str) -> bool:
        return any(
            service == f"{file.package}.{each.name}".lstrip(".")
            for file in self._files.values()
            for each in file.service
        )

    async def _fetch(self, name: str) -> None:
        answer = await self._ask(ServerReflectionRequest(file_by_filename=name))
        if answer.WhichOneof("message_response") == "file_descriptor_response":
            self._keep(answer)
        if name not in self._files:
            if name in _WELL_KNOWN_FILES:
                self._add(_WELL_KNOWN_FILES[name])
            else:
                self._absent.add(name)

    def _keep(self, answer: ServerReflectionResponse) -> None:
        for serialized in answer.file_descriptor_response.file_descriptor_proto:
            self._add(serialized)

    def _add(self, serialized: bytes) -> None:
        try:
            file = FileDescriptorProto.FromString(serialized)
        except DecodeError:
            raise InvalidContract(f"The reflection of {self._address} sent a malformed file descriptor.") from None
        if file.name in self._files:
            return
        self._total_bytes += len(serialized)
        if len(self._files) >= FILES_LIMIT or self._total_bytes > TOTAL_LIMIT_BYTES:
            raise InvalidContract(
                f"The contract of {self._address} has more than {FILES_LIMIT:,} files or "
                f"{TOTAL_LIMIT_BYTES // 1024**2} MiB."
            )
        self._files[file.name] = file
        self._imported.extend(file.dependency)

    def _refuse_unresolved(self) -> None:
        """Refuses files that use types of a file which the server did not give."""
        if not self._absent:
            return
        defined = {name for file in self._files.values() for name in _defined_types(file)}
        for file in self._files.values():
            for name in _used_types(file):
                if name.startswith(".") and name not in defined:
                    absent = ", ".join(sorted(self._absent)[:3])
                    raise InvalidContract(
                        f"{file.name} of {self._address} uses {name[1:]}, which is in none of the files that its "
                        f"reflection gives ({absent} is missing); upload the contract."
                    )

    def _in_order(self) -> list[FileDescriptorProto]:
        graph = {name: list(file.dependency) for name, file in self._files.items()}
        try:
            return [self._files[name] for name in TopologicalSorter(graph).static_order()]
        except CycleError:
            raise InvalidContract(f"Files of {self._address} import each other in a circle.") from None


def _drop_imports(file: FileDescriptorProto, absent: set[str]) -> None:
    """Takes imports away that the server does not have, and mends the lists that count by position."""
    if absent.isdisjoint(file.dependency):
        return
    kept = [index for index, name in enumerate(file.dependency) if name not in absent]
    position = {old: new for new, old in enumerate(kept)}
    names = [file.dependency[index] for index in kept]
    public = [position[index] for index in file.public_dependency if index in position]
    weak = [position[index] for index in file.weak_dependency if index in position]
    file.dependency[:] = names
    file.public_dependency[:] = public
    file.weak_dependency[:] = weak


def _defined_types(file: FileDescriptorProto) -> Iterator[str]:
    prefix = f".{file.package}" if file.package else ""
    for scope, message in _messages(prefix, file.message_type):
        yield scope
        for enum in message.enum_type:
            yield f"{scope}.{enum.name}"
    for enum in file.enum_type:
        yield f"{prefix}.{enum.name}"


def _used_types(file: FileDescriptorProto) -> Iterator[str]:
    for _, message in _messages("", file.message_type):
        for field in message.field:
            if field.type_name:
                yield field.type_name
    for service in file.service:
        for method in service.method:
            yield method.input_type
            yield method.output_type


def _messages(scope: str, messages: Iterable[DescriptorProto]) -> Iterator[tuple[str, DescriptorProto]]:
    """Yields each message, nested ones included, with its full name."""
    for message in messages:
        name = f"{scope}.{message.name}"
        yield name, message
        yield from _messages(name, message.nested_type)
