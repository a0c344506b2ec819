"""Reads a worker's descriptors by gRPC server reflection. Says nothing about what they mean (see contracts).

Reflection v1 and v1alpha have the same messages, so the v1alpha classes serve for both. Servers differ in what they
answer: some send a file with all that it imports, some only the file asked for, and some lack files.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import grpc
import grpc.aio
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from orchestrator.domain.errors import InvalidContract, ReflectionUnavailable, WorkerUnreachable
from orchestrator.outbound.channels import CONNECT_TIMEOUT_SECONDS, Channels
from orchestrator.outbound.descriptor_repair import NotRepairable, repair

TIMEOUT_SECONDS = 10.0
FILES_LIMIT = 2_000
TOTAL_LIMIT_BYTES = 4 * 1024 * 1024

_PATHS = (
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)
# Served beside a worker's own services, and no part of its contract.
_NOT_OF_THE_CONTRACT = ("grpc.reflection.", "grpc.health.", "grpc.channelz.", "grpc.admin.", "baton.worker.v1.")
_WORK_STREAM = "baton.worker.v1.WorkerService"

_Asking = grpc.aio.UnaryUnaryMultiCallable[ServerReflectionRequest, ServerReflectionResponse]


class Reflected(NamedTuple):
    """What a server's reflection gives: the closed set of files, and the services that it really serves.

    Files may define services that are not served at this address; only `services` counts. `work_stream` tells whether
    it serves baton.worker.v1.WorkerService beside them.
    """

    files: list[FileDescriptorProto]
    services: tuple[str, ...]
    work_stream: bool


async def read_descriptors(channels: Channels, address: str) -> Reflected:
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
                    reflected = await _read_with(connection.channel, path, address)
                    if reflected is not None:
                        return reflected
    except TimeoutError:
        raise ReflectionUnavailable(
            f"The reflection of {address} did not end within {TIMEOUT_SECONDS:.0f} s; upload the contract."
        ) from None
    raise ReflectionUnavailable(f"{address} serves no reflection; add it to the server, or upload the contract.")


async def _read_with(channel: grpc.aio.Channel, path: str, address: str) -> Reflected | None:
    """Reads all files by the reflection at `path`; None where the server does not have it."""
    # The method is a stream both ways, and one question with one answer is a stream too. Questions written to a stream
    # that stays open would race with a refusal of the server, and grpc then reports INTERNAL in place of its code.
    asking: _Asking = channel.unary_unary(
        path,
        request_serializer=ServerReflectionRequest.SerializeToString,
        response_deserializer=ServerReflectionResponse.FromString,
    )
    task = asyncio.current_task()
    cancels_before = task.cancelling() if task is not None else 0
    try:
        return await _Reading(asking, address).read()
    except grpc.aio.AioRpcError as error:
        _explain(error.code(), address)
        return None
    except asyncio.CancelledError:
        if task is None or task.cancelling() > cancels_before:
            raise
        raise WorkerUnreachable(f"The connection to {address} was closed.") from None


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


class _Reading:
    """One conversation with a reflection service: asks for a file after the other until nothing is missing."""

    def __init__(self, asking: _Asking, address: str) -> None:
        self._asking = asking
        self._address = address
        self._files: dict[str, FileDescriptorProto] = {}
        self._total_bytes = 0
        self._imported: list[str] = []
        self._absent: set[str] = set()

    async def read(self) -> Reflected:
        served = await self._list_services()
        services = [name for name in served if not name.startswith(_NOT_OF_THE_CONTRACT)]
        for service in services:
            if not self._has_service(service):
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
        try:
            # A contract of 4 MiB takes a good part of a second, which the event loop cannot spare.
            files = await asyncio.to_thread(repair, self._files.values())
            return Reflected(files, tuple(services), _WORK_STREAM in served)
        except NotRepairable as error:
            absent = ", ".join(sorted(self._absent)[:3])
            raise InvalidContract(
                f"The files that the reflection of {self._address} gives are not whole: {error}"
                f"{f' ({absent} is missing)' if absent else ''}; upload the contract."
            ) from None

    async def _list_services(self) -> list[str]:
        answer = await self._ask(ServerReflectionRequest(list_services="*"))
        if answer.WhichOneof("message_response") != "list_services_response":
            raise ReflectionUnavailable(f"The reflection of {self._address} lists no services; upload the contract.")
        return [service.name for service in answer.list_services_response.service]

    async def _ask(self, request: ServerReflectionRequest) -> ServerReflectionResponse:
        call = self._asking(request)
        try:
            return await call
        finally:
            call.cancel()

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
