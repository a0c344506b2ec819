"""Every system, in the order in which tables show them."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.systems import Place, System, baton, dbos, floor, restate, sketch
from benchmarks.works import CLIENTS, WORKS

SYSTEMS: dict[str, Callable[[Place], System]] = {
    "postgres": floor.Postgres,
    "grpc": floor.Grpc,
    "sketch-stream": sketch.stream,
    "sketch-batch": sketch.batch,
    "sketch-unary": sketch.unary,
    "baton-unary": baton.unary,
    "baton-stream": baton.stream,
    "baton-sdk": baton.sdk_client,
    "baton-traced-1": baton.sampled,
    "baton-traced-100": baton.traced,
    "baton-processes-1": baton.in_processes(1),
    "baton-processes-2": baton.in_processes(2),
    "baton-processes-3": baton.in_processes(3),
    "baton-processes-4": baton.in_processes(4),
    "restate": restate.Restate,
    "dbos": dbos.InProcess,
    "dbos-queue": dbos.Queue,
}
QUICK = ("postgres", "grpc", "sketch-stream", "sketch-unary", "baton-unary", "baton-stream")
QUICK_WORKS = tuple(work.name for work in WORKS if work not in CLIENTS)
