"""A worker as a program: `worker.py KIND PORT LOG BATON ADVERTISE`. It says in a line that it serves.

KIND: `streamed` and `attached` are workers of the SDK, the former listening, the latter dialling Baton; `unary` is a
plain grpc.aio server and `threaded` a plain one with threads, neither of which knows of Baton. Each call is noted in
the log before anything is done and again before it is answered.
"""
# ruff: noqa: N802 - gRPC methods are named as in the proto

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from baton import Worker
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from tests.chaos.logs import Log, now_us
from tests.chaos.works import BRISK, KINDS, SLOW_SECONDS, WORK_SECONDS, pb, stubs

SERVING = health_pb2.HealthCheckResponse.SERVING

CONTROL_DIRECTORY = "CHAOS_CONTROL"
"""Folder of files that tell a worker how to behave: its KIND with `.flap` lets half of its calls fail,
with the status that it names, or UNAVAILABLE."""


class Workshop:
    """What a call comes to, for async and plain handlers alike."""

    def __init__(self, kind: str, log: Log) -> None:
        self.kind, self._log = kind, log
        self._flap = Path(os.environ[CONTROL_DIRECTORY], f"{kind}.flap")

    def arrive(self, request: Any, context: Any) -> dict[str, Any]:
        """Notes a call; returns what the note says. Poison kills the process."""
        metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
        call = {
            "worker": self.kind,
            "run": metadata.get("baton-run", ""),
            "step": metadata.get("baton-step", ""),
            "attempt": int(metadata.get("baton-attempt", "0")),
            "delivery": int(metadata.get("baton-delivery", "0")),
            "epoch": int(metadata.get("baton-epoch", "0")),
            "key": metadata.get("idempotency-key", ""),
        }
        self._log.write(what="arrived", time=now_us(), **call)
        if request.conduct == "poison":
            os._exit(9)
        return call

    def answer(self, request: Any, call: dict[str, Any]) -> Any:
        """Notes the answer of a call, and returns it."""
        number = request.number + sum(each.number for each in request.results) + 1
        self._log.write(what="answered", time=now_us(), value=number, **call)
        return pb.Result(number=number)

    def seconds(self, request: Any, call: dict[str, Any]) -> float:
        """How long a call takes."""
        if request.conduct == "hang" and call["attempt"] == 1:
            return 20 * SLOW_SECONDS
        if request.conduct in ("work", BRISK):
            return WORK_SECONDS / (10 if request.conduct == BRISK else 1)
        if request.conduct == "late" and call["attempt"] == 1:
            return SLOW_SECONDS + 0.3
        return random.uniform(0.0, 0.03)

    def failure(self, request: Any, call: dict[str, Any]) -> grpc.StatusCode | None:
        """What a call fails with; None where it does not."""
        if request.conduct == "flaky" and call["attempt"] <= 2:
            return grpc.StatusCode.UNAVAILABLE
        try:
            told = self._flap.read_text()
        except FileNotFoundError:
            return None
        return grpc.StatusCode[told or "UNAVAILABLE"] if random.random() < 0.5 else None


def servicer(kind: str, workshop: Workshop) -> Any:
    """A servicer of the service of a kind."""
    base: Any = getattr(stubs, f"{KINDS[kind]}Servicer")

    class Asynchronous(base):  # type: ignore[misc]
        async def Do(self, request: Any, context: Any) -> Any:
            call = workshop.arrive(request, context)
            await asyncio.sleep(workshop.seconds(request, call))
            if failure := workshop.failure(request, call):
                await context.abort(failure, "told to fail")
            return workshop.answer(request, call)

    class Plain(base):  # type: ignore[misc]
        def Do(self, request: Any, context: Any) -> Any:
            call = workshop.arrive(request, context)
            time.sleep(workshop.seconds(request, call))
            if failure := workshop.failure(request, call):
                context.abort(failure, "told to fail")
            return workshop.answer(request, call)

    return Plain() if kind == "threaded" else Asynchronous()


def _outfit(server: Any, checks: Any, kind: str, workshop: Workshop, port: str) -> None:
    """Gives a plain server what any server has: its service, health and reflection."""
    add: Callable[..., None] = getattr(stubs, f"add_{KINDS[kind]}Servicer_to_server")
    add(servicer(kind, workshop), server)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection([f"works.v1.{KINDS[kind]}", reflection.SERVICE_NAME], server)
    server.add_insecure_port(f"127.0.0.1:{port}")


async def _main(kind: str, port: str, log: str, baton: str, advertise: str) -> None:
    workshop = Workshop(kind, Log(Path(log)))
    if kind == "unary":
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        checks = health.aio.HealthServicer()
        _outfit(server, checks, kind, workshop, port)
        await checks.set("", SERVING)
        await server.start()
    elif kind == "threaded":
        # Calls that hang keep their thread.
        plain = grpc.server(ThreadPoolExecutor(64), options=[("grpc.so_reuseport", 0)])
        plain_checks = health.HealthServicer()
        plain_checks.set("", SERVING)
        _outfit(plain, plain_checks, kind, workshop, port)
        plain.start()
    else:
        worker = Worker(kind, baton=baton, advertise=advertise)
        worker.add(servicer(kind, workshop))
        await worker.start(f"127.0.0.1:{port}", attach=kind == "attached")
    print("serving", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:6]))
