"""What campaigns run: the contract of the workers, the workflows, and how runs of them must end."""

from __future__ import annotations

import atexit
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage

STUBS_VARIABLE = "CHAOS_STUBS"
"""Folder of the generated modules, which the first process of a campaign makes for all."""


def _generated() -> str:
    target = tempfile.mkdtemp(prefix="baton-chaos-stubs-")
    atexit.register(shutil.rmtree, target, ignore_errors=True)
    outputs = [f"--python_out={target}", f"--grpc_python_out={target}", "works/v1/works.proto"]
    folder = Path(__file__).with_name("protos")
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{folder}", *outputs], check=True)
    return target


if STUBS_VARIABLE not in os.environ:
    os.environ[STUBS_VARIABLE] = _generated()
sys.path.insert(0, os.environ[STUBS_VARIABLE])

pb: Any = importlib.import_module("works.v1.works_pb2")
stubs: Any = importlib.import_module("works.v1.works_pb2_grpc")

KINDS = {"streamed": "Streamed", "attached": "Attached", "unary": "Unary", "threaded": "Threaded"}
"""Kinds of workers, and the service that each serves."""

SLOW_SECONDS = 1.5
"""Time of an attempt. What hangs or answers late takes longer."""

WORK_SECONDS = 0.2
"""Time of the one step of the workflow `work`."""

BRISK = "brisk"
"""A conduct by which that step takes a tenth of the time."""

NAP_US = 300_000
"""Time that the sleeping step sleeps at least."""

POISON_ATTEMPTS = 3

EDGES = [("a", "b"), ("a", "c"), ("a", "nap"), ("b", "d"), ("c", "d"), ("nap", "d")]
"""Which step comes before which, in every workflow."""


WORK = "work"
"""A workflow of one step, which takes its time at a worker of the kind `unary`."""

STREAMED_WORK = "streamed-work"
"""The same at a worker of the kind `streamed`."""

ALARM = "alarm"
"""A workflow of one step, which sleeps until the second that the number of the input names."""

DOZE = "doze"
"""A workflow of one step, which sleeps for a while; its replica parks the run where settings say so."""

DOZE_SECONDS = 2

_TYPES = {"input_type": "works.v1.Task", "output_type": "works.v1.Result"}

_RETRY = {
    "max_attempts": 200,
    "initial_backoff": "0.1s",
    "backoff_multiplier": 1.5,
    "max_backoff": "1s",
    "codes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "ABORTED", "DEADLINE_EXCEEDED", "UNKNOWN", "INTERNAL"],
}


@dataclass(frozen=True, slots=True)
class Conduct:
    """A way in which workers behave at step b, and how such a run ends."""

    name: str
    ends: str = "run_succeeded"
    poison: bool = False


CONDUCTS = {
    each.name: each
    for each in (
        Conduct(""),
        Conduct("hang"),
        Conduct("late"),
        Conduct("flaky"),
        Conduct("poison", "run_failed", True),
        Conduct("work"),
        Conduct(BRISK),
        Conduct("alarm"),
    )
}


def workflow_name(rotation: int, conduct: str) -> str:
    """Name of the workflow whose steps begin at the kind of worker of that number."""
    return f"works-{rotation}{'-poison' if CONDUCTS[conduct].poison else ''}"


def workflows() -> list[dict[str, Any]]:
    """Every workflow, in its JSON form."""
    rotated = [_workflow(rotation, conduct) for rotation in range(len(KINDS)) for conduct in ("", "poison")]
    works = [_work(WORK, "Unary"), _work(STREAMED_WORK, "Streamed")]
    alarm = {"id": "alarm", "sleep": {"until": {"expression": "timestamp(input.number)"}}}
    doze = {"id": "alarm", "sleep": {"duration": {"literal": f"{DOZE_SECONDS}s"}}}
    output = {"output": {"number": {"path": "input.number"}}, "run_timeout": "3600s"}
    sleeping = [{"name": name, "steps": [step]} | output | _TYPES for name, step in ((ALARM, alarm), (DOZE, doze))]
    return [*rotated, *works, *sleeping]


def _work(name: str, service: str) -> dict[str, Any]:
    step = {"id": "s", "method": f"works.v1.{service}/Do", "whole_request": {"path": "input"}, "retry": _RETRY}
    return {"name": name, "steps": [step], "whole_output": {"path": "steps.s.output"}} | _TYPES


def _workflow(rotation: int, conduct: str) -> dict[str, Any]:
    services = list(KINDS.values())

    def step(name: str, kind: int, *sources: str, **more: Any) -> dict[str, Any]:
        results = {"list": {"elements": [{"path": f"steps.{source}.output"} for source in sources]}}
        return {
            "id": name,
            "method": f"works.v1.{services[(rotation + kind) % len(services)]}/Do",
            "request": {"results": results} if sources else {"number": {"path": "input.number"}},
            "attempt_timeout": f"{SLOW_SECONDS}s",
            "retry": _RETRY,
        } | more

    second = step("b", 1, "a")
    second["request"]["conduct"] = {"path": "input.conduct"}
    if conduct == "poison":
        second["retry"] = _RETRY | {"max_attempts": POISON_ATTEMPTS}
    nap = {"id": "nap", "after": ["a"], "sleep": {"duration": {"literal": f"{NAP_US / 1_000_000}s"}}}
    return {
        "name": workflow_name(rotation, conduct),
        "run_timeout": "900s",
        "steps": [step("a", 0), second, step("c", 2, "a"), nap, step("d", 3, "b", "c", after=["nap"])],
        "whole_output": {"path": "steps.d.output"},
    } | _TYPES


def given(number: int, conduct: str) -> AnyMessage:
    """The input of a run."""
    packed = AnyMessage()
    packed.Pack(pb.Task(number=number, conduct=conduct))
    return packed


def output_of(number: int) -> int:
    """What a run that succeeds gives: each step adds one to the sum of what it gets."""
    return 2 * (number + 2) + 1
