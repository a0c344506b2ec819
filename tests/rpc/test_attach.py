"""The door for workers that dial in: who speaks first, and what an opening must hold."""

from __future__ import annotations

import grpc
import pytest
from baton.worker.v1 import work_pb2, work_pb2_grpc
from google.protobuf import descriptor_pb2

from .fakes import FakeEngine, told


def opening(**changes: object) -> work_pb2.WorkerOpening:
    """A good opening, but for what is changed."""
    contract = descriptor_pb2.FileDescriptorSet(file=[_file()])
    fields = {"worker": "payments", "instance_id": "one", "credit": 3, "contract": contract} | changes
    return work_pb2.WorkerOpening(**{name: value for name, value in fields.items() if value is not None})  # type: ignore[arg-type]


def _file() -> descriptor_pb2.FileDescriptorProto:
    return descriptor_pb2.FileDescriptorProto(name="a.proto", package="a.v1", syntax="proto3")


async def test_baton_speaks_first_and_the_worker_is_attached(engine: FakeEngine, channel: grpc.aio.Channel) -> None:
    call = work_pb2_grpc.AttachServiceStub(channel).Attach()
    first = await call.read()
    assert isinstance(first, work_pb2.BatonFrame)
    assert first.opening.replica_id == "replica"
    sent = opening()
    await call.write(work_pb2.WorkerFrame(opening=sent))
    assert await call.read() is grpc.aio.EOF
    assert engine.last("attach") == (work_pb2.WorkerFrame(opening=sent),)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"worker": "No Name"}, "opening.worker"),
        ({"worker": ""}, "opening.worker"),
        ({"instance_id": ""}, "opening.instance_id"),
        ({"instance_id": "x" * 129}, "opening.instance_id"),
        ({"instance_id": "line\nbreak"}, "opening.instance_id"),
        ({"contract": None}, "opening.contract"),
    ],
)
async def test_an_opening_with_a_fault_is_refused_with_its_path(
    channel: grpc.aio.Channel, changes: dict[str, object], path: str
) -> None:
    call = work_pb2_grpc.AttachServiceStub(channel).Attach()
    await call.write(work_pb2.WorkerFrame(opening=opening(**changes)))
    assert isinstance(await call.read(), work_pb2.BatonFrame)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    answer = told(caught.value)
    assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert answer.bad_request is not None
    assert [fault.field for fault in answer.bad_request.field_violations] == [path]
