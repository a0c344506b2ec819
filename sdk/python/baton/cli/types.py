"""Message types of workflows and workers, found by the server's reflection: what JSON is turned into an input with,
and what payloads are shown with."""

from __future__ import annotations

import base64
import difflib
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, json_format, message_factory, struct_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

_CALL_SECONDS = 10.0
_FILES_LIMIT = 5_000

File = descriptor_pb2.FileDescriptorProto


class Types:
    """Message types by name: first those of `files`, then what the server's reflection tells of."""

    def __init__(self, address: str, files: descriptor_pb2.FileDescriptorSet | None = None) -> None:
        self._address = address
        self._pool = descriptor_pool.DescriptorPool()
        self._added: set[str] = set()
        self._missing: set[str] = set()
        self._own = {file.name: file for file in files.file} if files is not None else {}
        for name in self._own:
            self._add(name, self._own)

    async def find(self, name: str) -> Descriptor | None:
        """Finds a message type by its full name; None where nobody has it."""
        found = self._known(name)
        if found is not None or name in self._missing:
            return found
        for file_name, files in await self._ask(name):
            self._add(file_name, files)
        found = self._known(name)
        if found is None:
            self._missing.add(name)
        return found

    async def to_json(self, message: Message) -> Any:
        """Returns the protobuf JSON form with the fields' own names.

        A payload whose type nobody has is shown as its type's name and its bytes in base64.
        """
        shown = type(message)()
        shown.CopyFrom(message)
        for each in list(_payloads(shown)):
            if not await self._resolve(each):
                _hide(each)
                self._add_from(struct_pb2.Struct.DESCRIPTOR)  # What stands in the payload's place.
        return json_format.MessageToDict(shown, preserving_proto_field_name=True, descriptor_pool=self._pool)

    async def payload_to_json(self, payload: any_pb2.Any) -> Any:
        """Returns a payload in its JSON form, without the name of its type; None where there is none."""
        if not payload.type_url:
            return None
        told = await self.to_json(payload)
        told.pop("@type", None)
        return told

    def new_message(self, descriptor: Descriptor) -> Message:
        """Makes an empty message of a type that was found."""
        return message_factory.GetMessageClass(descriptor)()

    def parse(self, value: Any, message: Message) -> None:
        """Reads the JSON form into a message; raises json_format.ParseError."""
        json_format.ParseDict(value, message, descriptor_pool=self._pool)

    def _known(self, name: str) -> Descriptor | None:
        for pool in (self._pool, descriptor_pool.Default()):
            try:
                return pool.FindMessageTypeByName(name)
            except KeyError:
                continue
        return None

    async def _resolve(self, payload: any_pb2.Any) -> bool:
        descriptor = await self.find(payload.TypeName())
        if descriptor is None:
            return False
        inner = self.new_message(descriptor)
        try:
            inner.ParseFromString(payload.value)
        except DecodeError:
            return False
        if descriptor.file.pool is not self._pool:
            # Shown through our own pool, so that one conversion knows every type.
            self._add_from(descriptor)
        for each in _payloads(inner):
            if not await self._resolve(each):
                return False
        return True

    def _add_from(self, descriptor: Descriptor) -> None:
        files: dict[str, File] = {}
        waiting = [descriptor.file]
        while waiting:
            file = waiting.pop()
            if file.name not in files:
                files[file.name] = File.FromString(file.serialized_pb)
                waiting.extend(file.dependencies)
        self._add(descriptor.file.name, files)

    def _add(self, name: str, files: dict[str, File]) -> None:
        """Adds a file after what it imports. What is missing or contradicts what is there is left out."""
        if name in self._added or name not in files:
            return
        self._added.add(name)
        for dependency in files[name].dependency:
            self._add(dependency, files)
        try:
            self._pool.Add(files[name])
        except TypeError:
            return

    async def _ask(self, symbol: str) -> list[tuple[str, dict[str, File]]]:
        """Asks the server for the file of a symbol and all that it imports."""
        files: dict[str, File] = {}
        async with grpc.aio.insecure_channel(self._address) as channel:
            stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
            call = stub.ServerReflectionInfo(timeout=_CALL_SECONDS)
            try:
                first = await _answer(call, reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol))
                files |= {file.name: file for file in first}
                wanted = {each for file in first for each in file.dependency} - files.keys()
                while wanted and len(files) < _FILES_LIMIT:
                    name = wanted.pop()
                    more = await _answer(call, reflection_pb2.ServerReflectionRequest(file_by_filename=name))
                    more = more or _well_known(name)
                    files |= {file.name: file for file in more}
                    wanted |= {each for file in more for each in file.dependency} - files.keys()
                await call.done_writing()
            except grpc.aio.AioRpcError:
                return []
            finally:
                call.cancel()
        return [(name, files) for name in files]


async def _answer(call: Any, request: reflection_pb2.ServerReflectionRequest) -> list[File]:
    await call.write(request)
    response = await call.read()
    if response is grpc.aio.EOF:
        return []
    return [File.FromString(each) for each in response.file_descriptor_response.file_descriptor_proto]


def _well_known(name: str) -> list[File]:
    try:
        return [File.FromString(descriptor_pool.Default().FindFileByName(name).serialized_pb)]
    except KeyError:
        return []


def _payloads(message: Message) -> Iterator[any_pb2.Any]:
    """Yields the payloads in a message, at any depth, itself included."""
    if isinstance(message, any_pb2.Any) or message.DESCRIPTOR.full_name == "google.protobuf.Any":
        if message.type_url:  # type: ignore[attr-defined]
            yield message  # type: ignore[misc]
        return
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is not None:
                for each in value.values():
                    yield from _payloads(each)
        elif field.is_repeated:
            for each in value:
                yield from _payloads(each)
        else:
            yield from _payloads(value)


def _hide(payload: any_pb2.Any) -> None:
    unknown = struct_pb2.Struct()
    unknown["unknown_type"] = payload.TypeName()
    unknown["base64"] = base64.b64encode(payload.value).decode()
    payload.Pack(unknown)


def closest(name: str, names: list[str]) -> str:
    """Returns `; did you mean X?` for the closest of some names, and nothing where none is close."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else ""
