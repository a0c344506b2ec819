"""An address that is deleted and registered anew while its worker goes on: no run gets the answer of another."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from baton.v1 import worker_service_pb2

from tests.acceptance.conftest import name_of
from tests.acceptance.test_work_streams import SUCCEEDED, endpoint

pytestmark = pytest.mark.parametrize("transport", ["stream"], indirect=True)

RUNS = 30
ANSWER_BYTES = 900_000
"""So many that the worker still has some of them to send, or to hear that they were taken."""


def one_call(lab: Any, text: str, conduct: dict[str, object]) -> dict[str, object]:
    request = {"text": {"literal": text}, "conduct": {"literal": conduct}}
    call = {"id": "a", "method": lab.contract.method("Lab/Do"), "request": request, "retry": {"max_attempts": 1}}
    return {"steps": [call]}


async def test_answers_of_before_are_not_those_of_calls_that_are_made_now(baton: Any, registered: Any) -> None:
    lab, name = registered, name_of(registered)
    await endpoint(baton, name)
    conduct = {"size": ANSWER_BYTES, "gate": "old"}
    old = [(await baton.submit(one_call(lab, f"old{number}", conduct))).run_id for number in range(RUNS)]
    for number in range(RUNS):
        await lab.arrived(1, f"old{number}")
    lab.gates["old"].set()
    for run_id in old:
        assert (await baton.end(run_id)).state == SUCCEEDED
    await baton.workers.DeleteWorker(worker_service_pb2.DeleteWorkerRequest(worker=name))
    await baton.register(name, lab.address)
    texts = [f"new{number}" for number in range(RUNS)]
    new = await asyncio.gather(*(baton.submit(one_call(lab, text, {})) for text in texts))
    for text, submitted in zip(texts, new, strict=True):
        run = await baton.end(submitted.run_id)
        assert lab.contract.unpack("Result", run.steps[0].output).text == text
        assert [attempt.deliveries for attempt in run.steps[0].attempts] == [1]
    assert [text for text in texts if not lab.arrivals(text)] == []
