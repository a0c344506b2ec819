"""What a worker's status says to dispatch, whatever the worker has put there."""

from __future__ import annotations

from google.protobuf import any_pb2
from google.rpc import error_details_pb2

from orchestrator.domain.failures import Code, Failure, Origin
from orchestrator.engine.dispatch import SUSPENDED, awaited_keys


def test_the_awaited_keys_are_found_beside_details_that_cannot_be_read() -> None:
    info = error_details_pb2.ErrorInfo(reason=SUSPENDED, domain="baton", metadata={"awaited": "a_1,b_1"})
    packed = any_pb2.Any()
    packed.Pack(info)
    garbage = any_pb2.Any(type_url=packed.type_url, value=b"\xff\xff\xff")
    details = (b"\xff\xff", garbage.SerializeToString(), packed.SerializeToString())
    failure = Failure(Code.UNAVAILABLE, SUSPENDED, "", Origin.WORKER, details)
    assert awaited_keys(failure) == ("a_1", "b_1")
