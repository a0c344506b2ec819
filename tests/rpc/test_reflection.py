"""Server reflection by both versions: Baton's services, and the types of registered contracts."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest as Request
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionResponse as Response

from orchestrator.rpc import reflection
from orchestrator.rpc.server import SERVICES
from tests.rpc.fakes import FakeEngine

VERSIONS = [reflection.V1, reflection.V1ALPHA]
TYPE = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
BUF = Path(sys.executable).with_name("buf")


def contract() -> list[descriptor_pb2.FileDescriptorProto]:
    """Makes the files of a contract: a service whose messages import another file and Baton's own run.proto."""
    money = descriptor_pb2.FileDescriptorProto(name="shop/money.proto", package="shop.v1", syntax="proto3")
    money.message_type.add(name="Money").field.add(name="currency", number=1, type=TYPE, label=1)
    stock = descriptor_pb2.FileDescriptorProto(
        name="shop/stock.proto",
        package="shop.v1",
        syntax="proto2",
        dependency=["shop/money.proto", "google/protobuf/descriptor.proto", "baton/v1/run.proto"],
    )
    request = stock.message_type.add(name="ReserveRequest")
    request.nested_type.add(name="Line")
    request.enum_type.add(name="Kind").value.add(name="KIND", number=0)
    service = stock.service.add(name="Stock")
    service.method.add(name="Reserve", input_type=".shop.v1.ReserveRequest", output_type=".shop.v1.Money")
    stock.extension.add(name="owner", number=50_001, type=TYPE, label=1, extendee=".google.protobuf.MethodOptions")
    return [stock, money]


async def ask(channel: grpc.aio.Channel, version: str, requests: Sequence[Request]) -> list[Response]:
    """Asks on one stream, each request after the answer to the one before."""
    answered = asyncio.Semaphore(1)

    async def send() -> AsyncIterator[bytes]:
        for request in requests:
            await answered.acquire()
            yield request.SerializeToString()

    answers = []
    call: Any = channel.stream_stream(f"/{version}/ServerReflectionInfo")
    async for raw in call(send(), timeout=10):
        answers.append(Response.FromString(raw))
        answered.release()
    return answers


def files_of(response: Response) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    files = map(descriptor_pb2.FileDescriptorProto.FromString, response.file_descriptor_response.file_descriptor_proto)
    return {file.name: file for file in files}


@pytest.mark.parametrize("version", VERSIONS)
async def test_every_listed_service_resolves(version: str, channel: grpc.aio.Channel) -> None:
    (listed,) = await ask(channel, version, [Request(list_services="*")])
    names = [service.name for service in listed.list_services_response.service]
    assert set(names) == {*(each.full_name for each in SERVICES), *VERSIONS, "grpc.health.v1.Health"}
    answers = await ask(channel, version, [Request(file_containing_symbol=name) for name in names])
    files = {name: file for answer in answers for name, file in files_of(answer).items()}
    pool = descriptor_pool.DescriptorPool()
    added: set[str] = set()

    def add(name: str) -> None:
        if name not in added:
            added.add(name)
            for imported in files[name].dependency:
                add(imported)
            pool.Add(files[name])

    for name in files:
        add(name)
    for name in names:
        assert pool.FindServiceByName(name).methods


@pytest.mark.parametrize("version", VERSIONS)
async def test_contracts_are_looked_up_but_not_listed(
    version: str, engine: FakeEngine, channel: grpc.aio.Channel
) -> None:
    engine.files = contract()
    symbols = ["Stock", "Stock.Reserve", "ReserveRequest", "ReserveRequest.Line", "ReserveRequest.Kind", "owner"]
    for symbol in symbols:
        (answer,) = await ask(channel, version, [Request(file_containing_symbol=f"shop.v1.{symbol}")])
        files = files_of(answer)
        assert next(iter(files)) == "shop/stock.proto"
        assert {"shop/money.proto", "google/protobuf/descriptor.proto", "baton/v1/run.proto"} <= set(files)
    listed, money, unknown = await ask(
        channel,
        version,
        [
            Request(list_services="*"),
            Request(file_by_filename="shop/money.proto"),
            Request(file_containing_symbol="shop.v1.Nothing"),
        ],
    )
    assert not [each for each in listed.list_services_response.service if each.name.startswith("shop.")]
    assert list(files_of(money)) == ["shop/money.proto"]
    assert unknown.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_extensions(engine: FakeEngine, channel: grpc.aio.Channel) -> None:
    engine.files = contract()
    asked = Request()
    asked.file_containing_extension.containing_type = "google.protobuf.MethodOptions"
    asked.file_containing_extension.extension_number = 50_001
    file, numbers, none, unknown = await ask(
        channel,
        reflection.V1,
        [
            asked,
            Request(all_extension_numbers_of_type="google.protobuf.MethodOptions"),
            Request(all_extension_numbers_of_type="baton.v1.Run"),
            Request(all_extension_numbers_of_type="no.Type"),
        ],
    )
    assert next(iter(files_of(file))) == "shop/stock.proto"
    assert list(numbers.all_extension_numbers_response.extension_number) == [50_001]
    assert none.all_extension_numbers_response.base_type_name == "baton.v1.Run"
    assert unknown.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_own_files_win(engine: FakeEngine, channel: grpc.aio.Channel) -> None:
    false = descriptor_pb2.FileDescriptorProto(name="baton/v1/run.proto", package="baton.v1")
    false.message_type.add(name="Run")
    false.message_type.add(name="Intruder")
    engine.files = [false]
    run, by_name = await ask(
        channel,
        reflection.V1,
        [Request(file_containing_symbol="baton.v1.Run"), Request(file_by_filename="baton/v1/run.proto")],
    )
    for answer in (run, by_name):
        assert len(files_of(answer)["baton/v1/run.proto"].message_type) > 2


async def test_imports_are_sent_once_a_stream(channel: grpc.aio.Channel) -> None:
    symbol = Request(file_containing_symbol="baton.v1.RunService")
    first, second = await ask(channel, reflection.V1, [symbol, symbol])
    assert len(files_of(first)) > 5
    assert list(files_of(second)) == ["baton/v1/run_service.proto"]


async def test_responses_have_a_limit(engine: FakeEngine, channel: grpc.aio.Channel) -> None:
    names = [f"large/{n}.proto" for n in range(8)]
    engine.files = [descriptor_pb2.FileDescriptorProto(name="large/root.proto", dependency=names)]
    for name in names:
        large = descriptor_pb2.FileDescriptorProto(name=name)
        large.message_type.add(name="M" + "x" * 1_000_000)
        engine.files.append(large)
    answers = await ask(
        channel, reflection.V1, [Request(file_by_filename="large/root.proto"), Request(file_by_filename=names[7])]
    )
    assert list(files_of(answers[0])) == ["large/root.proto", *names[:2]]
    assert list(files_of(answers[1])) == [names[7]]


@pytest.mark.parametrize("version", ["grpc-v1", "grpc-v1alpha"])
async def test_buf_lists_and_calls(version: str, address: str) -> None:
    if not BUF.exists():
        pytest.skip("buf is not installed")
    url = f"http://{address}"
    common = ["--protocol", "grpc", "--http2-prior-knowledge", "--reflect-protocol", version]
    listed = await _run("curl", *common, "--list-methods", url)
    assert "baton.v1.RunService/SubmitRun" in listed.split()
    run_id = "01890a5d-ac96-774b-bcce-b302099a8057"
    got = await _run("curl", *common, "-d", json.dumps({"runId": run_id}), f"{url}/baton.v1.RunService/GetRun")
    assert json.loads(got) == {"run": {"runId": run_id}, "cursor": "cursor"}


async def _run(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        str(BUF), *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()
    return out.decode()
