"""Reading descriptors from servers whose reflection answers in all the ways that servers in the field do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1.health_pb2 import DESCRIPTOR as HEALTH
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2 import DESCRIPTOR as REFLECTION
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse
from grpc_tools import protoc

from orchestrator.domain.errors import InvalidContract, ReflectionUnavailable, WorkerUnreachable
from orchestrator.outbound import reflection as reading
from orchestrator.outbound.channels import Channels
from orchestrator.outbound.reflection import read_descriptors

V1 = "grpc.reflection.v1.ServerReflection"
V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"
SERVICES = ("shop.Orders", "shop.Returns", "shop.Stock")
ALL_FILES = {
    "google/protobuf/descriptor.proto",
    "google/protobuf/timestamp.proto",
    "shop/marks.proto",
    "shop/money.proto",
    "shop/orders.proto",
    "shop/stock.proto",
    "shop/tree.proto",
}

Files = dict[str, FileDescriptorProto]


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The compiled descriptors of tests/outbound/protos, by name."""
    source = Path(__file__).with_name("protos")
    compiled = tmp_path_factory.mktemp("protos") / "shop.binpb"
    builtin = Path(protoc.__file__).with_name("_proto")
    arguments = ["protoc", f"-I{source}", f"-I{builtin}", "--include_imports", f"--descriptor_set_out={compiled}"]
    assert protoc.main([*arguments, "shop/orders.proto", "shop/stock.proto"]) == 0
    return {file.name: file for file in FileDescriptorSet.FromString(compiled.read_bytes()).file}


@dataclass
class Reflection:
    """A reflection service that answers as told: one file or all at once, with files left out or changed."""

    files: Files
    version: str = V1
    services: tuple[str, ...] = SERVICES
    all_at_once: bool = False
    without: frozenset[str] = frozenset()
    changed: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def behave(self, requests: AsyncIterator[ServerReflectionRequest], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield self._answer(request)

    def _answer(self, request: ServerReflectionRequest) -> ServerReflectionResponse:
        answer = ServerReflectionResponse(original_request=request)
        kind = request.WhichOneof("message_request")
        if kind == "list_services":
            for service in self.services:
                answer.list_services_response.service.add(name=service)
            return answer
        asked = request.file_by_filename or request.file_containing_symbol
        self.asked.append(asked)
        name = asked if kind == "file_by_filename" else self._file_of(asked)
        if name not in self.files or name in self.without:
            answer.error_response.error_code = grpc.StatusCode.NOT_FOUND.value[0]
            answer.error_response.error_message = "a text of the server"
            return answer
        names = [name, *self._imports(name)] if self.all_at_once else [name]
        for each in names:
            content = self.changed.get(each, self.files[each].SerializeToString())
            answer.file_descriptor_response.file_descriptor_proto.append(content)
        return answer

    def _file_of(self, symbol: str) -> str:
        for file in self.files.values():
            if symbol in {f"{file.package}.{service.name}" for service in file.service}:
                return file.name
        return ""

    def _imports(self, name: str) -> Iterator[str]:
        for imported in self.files[name].dependency:
            if imported not in self.without:
                yield imported
                yield from self._imports(imported)


Serve = Callable[..., Awaitable[str]]


@pytest.fixture
async def serve_reflection() -> AsyncIterator[Serve]:
    """Starts a server with one reflection service and gives its address."""
    servers: list[grpc.aio.Server] = []

    async def start(service: Reflection | None, behave: Any = None, version: str = V1) -> str:
        server = grpc.aio.server()
        behaviour: Any = behave or (service.behave if service else None)
        handler = grpc.stream_stream_rpc_method_handler(
            behaviour,
            request_deserializer=ServerReflectionRequest.FromString,
            response_serializer=ServerReflectionResponse.SerializeToString,
        )
        if service is not None or behave is not None:
            name = service.version if service else version
            generic = grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler})
            server.add_generic_rpc_handlers((generic,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        await server.stop(None)


def build(files: list[FileDescriptorProto]) -> DescriptorPool:
    """A pool of the files in their order: fails unless each comes after what it imports."""
    pool = DescriptorPool()
    for file in files:
        pool.Add(file)
        pool.FindFileByName(file.name)
    return pool


@pytest.mark.parametrize("version", [V1, V1ALPHA])
@pytest.mark.parametrize("all_at_once", [True, False])
async def test_all_files_come_in_an_order_that_can_be_built(
    shop: Files, serve_reflection: Serve, channels: Channels, version: str, all_at_once: bool
) -> None:
    service = Reflection(shop, version=version, all_at_once=all_at_once)
    files, services, _ = await read_descriptors(channels, await serve_reflection(service))
    assert services == SERVICES
    assert {file.name for file in files} == ALL_FILES
    assert all(file == shop[file.name] for file in files)
    node = GetMessageClass(build(files).FindMessageTypeByName("shop.Node"))
    tree = node(children=[node(price={"units": 3})], by_name={"a": node()})
    assert node.FromString(tree.SerializeToString()) == tree
    assert len(service.asked) == len(set(service.asked)), "asked for a file that it had"


async def test_the_reflection_that_grpcio_ships_is_read_and_the_servers_own_services_left_out(
    shop: Files, channels: Channels
) -> None:
    pool = build([shop[name] for name in sorted(shop, key=list(shop).index)])
    for file in (HEALTH, REFLECTION):
        pool.AddSerializedFile(file.serialized_pb)
    server = grpc.aio.server()
    names = (*SERVICES, reflection.SERVICE_NAME, "grpc.health.v1.Health")
    reflection.enable_server_reflection(names, server, pool=pool)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    files, services, _ = await read_descriptors(channels, f"127.0.0.1:{port}")
    assert sorted(services) == sorted(SERVICES)
    assert {file.name for file in files} == ALL_FILES
    build(files)
    await server.stop(None)


async def test_only_the_services_that_the_server_lists_are_told(
    shop: Files, serve_reflection: Serve, channels: Channels
) -> None:
    service = Reflection(shop, services=("shop.Returns",))
    files, services, _ = await read_descriptors(channels, await serve_reflection(service))
    assert services == ("shop.Returns",)
    assert {file.name for file in files} == ALL_FILES - {"shop/stock.proto"}


async def test_a_file_of_options_that_the_server_lacks_is_done_without(
    shop: Files, serve_reflection: Serve, channels: Channels
) -> None:
    service = Reflection(shop, without=frozenset({"shop/marks.proto"}))
    files = (await read_descriptors(channels, await serve_reflection(service))).files
    orders = next(file for file in files if file.name == "shop/orders.proto")
    assert list(orders.dependency) == ["google/protobuf/timestamp.proto", "shop/tree.proto"]
    build(files)


async def test_well_known_files_that_the_server_lacks_are_our_own(
    shop: Files, serve_reflection: Serve, channels: Channels
) -> None:
    lacking = frozenset({"google/protobuf/timestamp.proto", "google/protobuf/descriptor.proto"})
    files = (await read_descriptors(channels, await serve_reflection(Reflection(shop, without=lacking)))).files
    assert {file.name for file in files} == ALL_FILES
    build(files)


async def test_a_missing_file_whose_types_are_used_is_refused_with_its_name(
    shop: Files, serve_reflection: Serve, channels: Channels
) -> None:
    service = Reflection(shop, without=frozenset({"shop/money.proto"}))
    with pytest.raises(InvalidContract, match=r"uses shop\.Money, .*shop/money\.proto is missing"):
        await read_descriptors(channels, await serve_reflection(service))


async def test_a_server_without_reflection_says_what_to_do(serve_reflection: Serve, channels: Channels) -> None:
    with pytest.raises(ReflectionUnavailable, match="serves no reflection; add it to the server, or upload"):
        await read_descriptors(channels, await serve_reflection(None))


async def test_a_service_that_is_listed_but_unknown_is_named(
    shop: Files, serve_reflection: Serve, channels: Channels
) -> None:
    service = Reflection(shop, services=("shop.Gone",))
    with pytest.raises(ReflectionUnavailable, match=r"shop\.Gone") as caught:
        await read_descriptors(channels, await serve_reflection(service))
    assert "a text of the server" not in caught.value.message


async def test_nobody_there_is_unreachable(channels: Channels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CONNECT_TIMEOUT_SECONDS", 0.3)
    with pytest.raises(WorkerUnreachable, match=r"127\.0\.0\.1:1 could not be reached"):
        await read_descriptors(channels, "127.0.0.1:1")


async def test_a_refusing_reflection_is_told_by_its_code_without_its_text(
    serve_reflection: Serve, channels: Channels
) -> None:
    async def refuse(requests: Any, context: Any) -> AsyncIterator[Any]:
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "secret text")
        yield

    with pytest.raises(ReflectionUnavailable, match="PERMISSION_DENIED") as caught:
        await read_descriptors(channels, await serve_reflection(None, refuse))
    assert "secret" not in caught.value.message


async def test_a_reflection_that_never_answers_ends_with_its_time_and_its_stream(
    serve_reflection: Serve, channels: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "TIMEOUT_SECONDS", 0.3)
    ended = asyncio.Event()

    async def hang(requests: Any, context: Any) -> AsyncIterator[Any]:
        try:
            await asyncio.Event().wait()
            yield
        finally:
            ended.set()

    with pytest.raises(ReflectionUnavailable, match="did not end within"):
        await read_descriptors(channels, await serve_reflection(None, hang))
    await asyncio.wait_for(ended.wait(), 5)


async def test_a_malformed_descriptor_is_refused(shop: Files, serve_reflection: Serve, channels: Channels) -> None:
    service = Reflection(shop, changed={"shop/tree.proto": b"\xff\xff\xff"})
    with pytest.raises(InvalidContract, match="malformed"):
        await read_descriptors(channels, await serve_reflection(service))


async def test_files_that_import_each_other_are_refused(
    shop: Files, serve_reflection: Serve, channels: Channels
) -> None:
    tree = FileDescriptorProto()
    tree.CopyFrom(shop["shop/tree.proto"])
    tree.dependency.append("shop/orders.proto")
    service = Reflection(shop, changed={"shop/tree.proto": tree.SerializeToString()})
    with pytest.raises(InvalidContract, match="circle"):
        await read_descriptors(channels, await serve_reflection(service))


async def test_a_contract_without_end_is_cut_off(
    serve_reflection: Serve, channels: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "FILES_LIMIT", 50)
    number = 0

    async def endless(requests: AsyncIterator[ServerReflectionRequest], context: Any) -> AsyncIterator[Any]:
        nonlocal number
        async for request in requests:
            answer = ServerReflectionResponse(original_request=request)
            if request.list_services:
                answer.list_services_response.service.add(name="shop.Orders")
            else:
                file = FileDescriptorProto(name=f"{number}.proto", dependency=[f"{number + 1}.proto"])
                answer.file_descriptor_response.file_descriptor_proto.append(file.SerializeToString())
                number += 1
            yield answer

    with pytest.raises(InvalidContract, match="more than 50 files"):
        await read_descriptors(channels, await serve_reflection(None, endless))


async def test_an_answer_larger_than_the_limit_is_refused(serve_reflection: Serve, channels: Channels) -> None:
    async def huge(requests: AsyncIterator[ServerReflectionRequest], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            answer = ServerReflectionResponse(original_request=request)
            answer.file_descriptor_response.file_descriptor_proto.append(b"x" * (5 << 20))
            yield answer

    with pytest.raises(InvalidContract, match="larger than 4 MiB"):
        await read_descriptors(channels, await serve_reflection(None, huge))


async def test_cancelling_the_reading_ends_the_stream(serve_reflection: Serve, channels: Channels) -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def hang(requests: Any, context: Any) -> AsyncIterator[Any]:
        started.set()
        try:
            await asyncio.Event().wait()
            yield
        finally:
            ended.set()

    task = asyncio.create_task(read_descriptors(channels, await serve_reflection(None, hang)))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(ended.wait(), 5)
