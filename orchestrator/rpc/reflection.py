"""Server reflection, v1 and v1alpha: Baton's own services, and the files of the contracts that are registered.

Own services alone are listed; the types of contracts can be looked up, so that clients can render an Any.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from orchestrator.domain.errors import InvalidRequest
from orchestrator.rpc.layers import current_caller

V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"
V1 = "grpc.reflection.v1.ServerReflection"

REQUEST_LIMIT = 10_000
"""Requests of one stream."""

FILE_LIMIT = 5_000
FILES_LIMIT_BYTES = 32 << 20
"""Files of contracts that one stream can look into, and their total size."""

RESPONSE_LIMIT_BYTES = 2 << 20
"""Size of one response. Imports that do not fit are left out; clients ask for them by name."""


class FileIndex:
    """Files by name, and the names of files by the symbols and extensions in them. The first of a name wins."""

    def __init__(self, files: Iterable[FileDescriptorProto]) -> None:
        self._files: dict[str, FileDescriptorProto] = {}
        self._symbols: dict[str, str] = {}
        self._extensions: dict[str, dict[int, str]] = {}
        for file in files:
            if file.name not in self._files:
                self._files[file.name] = file
                self._add_symbols(file)

    def file(self, name: str) -> FileDescriptorProto | None:
        """Finds a file by its name."""
        return self._files.get(name)

    def file_of_symbol(self, symbol: str) -> FileDescriptorProto | None:
        """Finds the file that defines a message, enum, service, method or extension."""
        return self._files.get(self._symbols.get(symbol, ""))

    def file_of_extension(self, message: str, number: int) -> FileDescriptorProto | None:
        """Finds the file that extends `message` by the field `number`."""
        return self._files.get(self._extensions.get(message, {}).get(number, ""))

    def extension_numbers(self, message: str) -> list[int]:
        """Lists the numbers by which `message` is extended."""
        return sorted(self._extensions.get(message, {}))

    def _add_symbols(self, file: FileDescriptorProto) -> None:
        prefix = f"{file.package}." if file.package else ""
        for message in file.message_type:
            self._add_message(file.name, prefix, message)
        for enum in file.enum_type:
            self._add(file.name, prefix + enum.name)
        for service in file.service:
            self._add(file.name, prefix + service.name)
            for method in service.method:
                self._add(file.name, f"{prefix}{service.name}.{method.name}")
        self._add_extensions(file.name, prefix, file.extension)

    def _add_message(self, file_name: str, prefix: str, message: DescriptorProto) -> None:
        self._add(file_name, prefix + message.name)
        inner = f"{prefix}{message.name}."
        for nested in message.nested_type:
            self._add_message(file_name, inner, nested)
        for enum in message.enum_type:
            self._add(file_name, inner + enum.name)
        self._add_extensions(file_name, inner, message.extension)

    def _add_extensions(self, file_name: str, prefix: str, extensions: Iterable[FieldDescriptorProto]) -> None:
        for extension in extensions:
            self._add(file_name, prefix + extension.name)
            numbers = self._extensions.setdefault(extension.extendee.lstrip("."), {})
            numbers.setdefault(extension.number, file_name)

    def _add(self, file_name: str, symbol: str) -> None:
        self._symbols.setdefault(symbol, file_name)


class Reflection:
    """Answers reflection. `contract_files` gives the files of a namespace's contracts."""

    def __init__(
        self,
        service_names: Iterable[str],
        own_files: Iterable[str],
        contract_files: Callable[[str], Iterable[FileDescriptorProto]],
    ) -> None:
        """Lists `service_names`, and serves `own_files`, named as in protobuf's default pool, with all imports."""
        self._service_names = sorted(service_names)
        self._own = FileIndex([*_with_imports([*own_files, reflection_pb2.DESCRIPTOR.name]), _v1_file()])
        self._contract_files = contract_files

    def add_to(self, server: Any) -> None:
        """Registers both versions, whose messages are the same on the wire."""
        handler = grpc.stream_stream_rpc_method_handler(
            self._answer,
            request_deserializer=ServerReflectionRequest.FromString,
            response_serializer=ServerReflectionResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}) for name in (V1, V1ALPHA)]
        )

    async def _answer(
        self, requests: AsyncIterator[ServerReflectionRequest], context: Any
    ) -> AsyncIterator[ServerReflectionResponse]:
        session = _Session(self._service_names, self._own, self._contracts)
        count = 0
        async for request in requests:
            count += 1
            if count > REQUEST_LIMIT:
                raise InvalidRequest(f"one stream takes {REQUEST_LIMIT} requests; open another for more")
            yield session.answer(request)

    def _contracts(self) -> FileIndex:
        """Indexes the contracts of the caller's namespace, within the limits."""
        files: list[FileDescriptorProto] = []
        room = FILES_LIMIT_BYTES
        for file in self._contract_files(current_caller().namespace):
            room -= file.ByteSize()
            if room < 0 or len(files) == FILE_LIMIT:
                break
            files.append(file)
        return FileIndex(files)


class _Session:
    """One stream. Contracts are looked into when an own file does not answer, as they are at that moment."""

    def __init__(self, service_names: Sequence[str], own: FileIndex, contracts: Callable[[], FileIndex]) -> None:
        self._service_names = service_names
        self._own = own
        self._read_contracts = contracts
        self._contracts: FileIndex | None = None
        self._sent: set[str] = set()

    def answer(self, request: ServerReflectionRequest) -> ServerReflectionResponse:
        """Answers one request."""
        response = ServerReflectionResponse(valid_host=request.host, original_request=request)
        match request.WhichOneof("message_request"):
            case "list_services":
                for name in self._service_names:
                    response.list_services_response.service.add(name=name)
            case "file_by_filename":
                self._add_file(response, lambda index: index.file(request.file_by_filename))
            case "file_containing_symbol":
                symbol = request.file_containing_symbol.lstrip(".")
                self._add_file(response, lambda index: index.file_of_symbol(symbol))
            case "file_containing_extension":
                asked = request.file_containing_extension
                self._add_file(
                    response, lambda index: index.file_of_extension(asked.containing_type, asked.extension_number)
                )
            case "all_extension_numbers_of_type":
                self._add_numbers(response, request.all_extension_numbers_of_type)
            case _:
                _set_error(response, grpc.StatusCode.UNIMPLEMENTED, "this kind of request is not known")
        return response

    def _find(self, find: Callable[[FileIndex], FileDescriptorProto | None]) -> FileDescriptorProto | None:
        found = find(self._own)
        if found is None:
            if self._contracts is None:
                self._contracts = self._read_contracts()
            found = find(self._contracts)
        return found

    def _add_file(
        self, response: ServerReflectionResponse, find: Callable[[FileIndex], FileDescriptorProto | None]
    ) -> None:
        """Puts a file into the response, and its imports that this stream has not sent."""
        first = self._find(find)
        if first is None:
            _set_error(response, grpc.StatusCode.NOT_FOUND, "neither Baton nor a registered contract has it")
            return
        files = response.file_descriptor_response.file_descriptor_proto
        room = RESPONSE_LIMIT_BYTES
        waiting, seen = deque([first]), {first.name}
        while waiting:
            file = waiting.popleft()
            if file is first or file.name not in self._sent:
                content = file.SerializeToString()
                room -= len(content)
                if room < 0 and files:
                    return
                files.append(content)
                self._sent.add(file.name)
            for name in file.dependency:
                imported = None if name in seen else self._find(lambda index, name=name: index.file(name))  # type: ignore[misc]
                seen.add(name)
                if imported is not None:
                    waiting.append(imported)

    def _add_numbers(self, response: ServerReflectionResponse, message: str) -> None:
        if self._find(lambda index: index.file_of_symbol(message)) is None:
            _set_error(response, grpc.StatusCode.NOT_FOUND, "neither Baton nor a registered contract has it")
            return
        numbers = set(self._own.extension_numbers(message))
        if self._contracts is None:
            self._contracts = self._read_contracts()
        numbers.update(self._contracts.extension_numbers(message))
        answer = response.all_extension_numbers_response
        answer.base_type_name = message
        answer.extension_number.extend(sorted(numbers))


def _set_error(response: ServerReflectionResponse, code: grpc.StatusCode, text: str) -> None:
    response.error_response.error_code = code.value[0]
    response.error_response.error_message = text


def _with_imports(names: Iterable[str]) -> list[FileDescriptorProto]:
    """Returns the files of protobuf's default pool called `names`, and all that they import."""
    found: dict[str, FileDescriptorProto] = {}
    waiting = [descriptor_pool.Default().FindFileByName(name) for name in names]
    while waiting:
        file = waiting.pop()
        if file.name not in found:
            found[file.name] = FileDescriptorProto.FromString(file.serialized_pb)
            waiting.extend(file.dependencies)
    return list(found.values())


def _v1_file() -> FileDescriptorProto:
    """Derives the file of v1, which differs from v1alpha in its names alone."""
    old, new = "grpc.reflection.v1alpha", "grpc.reflection.v1"
    file = FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
    file.name = "grpc/reflection/v1/reflection.proto"
    file.package = new
    file.ClearField("options")
    for message in file.message_type:
        for field in message.field:
            if field.HasField("type_name"):
                field.type_name = field.type_name.replace(old, new)
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(old, new)
            method.output_type = method.output_type.replace(old, new)
    return file
