"""The gRPC server: its options, its layers in their order, its services, and how it starts, drains and stops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
from baton.internal.v1 import permits_pb2, permits_pb2_grpc, replicas_pb2, replicas_pb2_grpc
from baton.v1 import (
    approval_service_pb2,
    approval_service_pb2_grpc,
    limit_service_pb2,
    limit_service_pb2_grpc,
    replica_service_pb2,
    replica_service_pb2_grpc,
    run_service_pb2,
    run_service_pb2_grpc,
    schedule_service_pb2,
    schedule_service_pb2_grpc,
    step_service_pb2,
    step_service_pb2_grpc,
    worker_service_pb2,
    worker_service_pb2_grpc,
    workflow_service_pb2,
    workflow_service_pb2_grpc,
)
from baton.worker.v1 import work_pb2, work_pb2_grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from orchestrator.engine.api import Doors
from orchestrator.engine.room import ReadRoom
from orchestrator.rpc import reflection
from orchestrator.rpc.approval_service import ApprovalService
from orchestrator.rpc.authentication import Authenticate, AuthenticationLayer
from orchestrator.rpc.forwarding import Forwarding
from orchestrator.rpc.layers import REQUEST_LIMIT_BYTES, WRITE_SECONDS, Layer, LayerInterceptor
from orchestrator.rpc.limit_service import LimitService
from orchestrator.rpc.observation import CallObserver, ObservationLayer, SpanLayer, SpanStarter
from orchestrator.rpc.permit_service import PermitService
from orchestrator.rpc.receipts import Receipts
from orchestrator.rpc.replica_service import HintService, ReplicaService
from orchestrator.rpc.room import REQUESTS_LIMIT_BYTES, RequestRoom
from orchestrator.rpc.run_service import RunService
from orchestrator.rpc.schedule_service import ScheduleService
from orchestrator.rpc.step_service import StepService
from orchestrator.rpc.submissions import Submissions
from orchestrator.rpc.validation import RequestValidator, ValidationLayer
from orchestrator.rpc.watches import WATCH_SECONDS, Watches
from orchestrator.rpc.work_service import AttachService, RelayService
from orchestrator.rpc.worker_service import WorkerService
from orchestrator.rpc.workflow_service import CHECK_METHOD, WorkflowService

DEFAULT_ADDRESS = "127.0.0.1:7330"

SERVICES: tuple[ServiceDescriptor, ...] = (
    worker_service_pb2.DESCRIPTOR.services_by_name["WorkerService"],
    workflow_service_pb2.DESCRIPTOR.services_by_name["WorkflowService"],
    run_service_pb2.DESCRIPTOR.services_by_name["RunService"],
    step_service_pb2.DESCRIPTOR.services_by_name["StepService"],
    approval_service_pb2.DESCRIPTOR.services_by_name["ApprovalService"],
    schedule_service_pb2.DESCRIPTOR.services_by_name["ScheduleService"],
    limit_service_pb2.DESCRIPTOR.services_by_name["LimitService"],
    replica_service_pb2.DESCRIPTOR.services_by_name["ReplicaService"],
    work_pb2.DESCRIPTOR.services_by_name["AttachService"],
)
"""The services of Baton."""

OPTIONS: tuple[tuple[str, int], ...] = (
    # Probing the line's bandwidth sends a ping beside most messages: a tenth of the CPU time of a busy server. A window
    # that lets most messages through at once stands in for what the probes would find; larger ones get theirs once they
    # are received (receipts.py), and until then a call holds no more than this.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 256 << 10),
    # A peer that is gone is noticed within 80 s, and clients may ping as often as every 5 s.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),  # counts for TCP; the next for HTTP/2, where a minute is the default
    ("grpc.http2.ping_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    # Connections are renewed so that clients find new replicas. Calls get the time of the longest: a watch ends itself
    # after at most 20 minutes, and a call waits for at most 10.
    ("grpc.max_connection_age_ms", 30 * 60_000),
    ("grpc.max_connection_age_grace_ms", 21 * 60_000),
    ("grpc.max_concurrent_streams", 1_000),
    # Twice what is taken, so that most of what is too large is refused with a reason; grpc refuses the rest without.
    ("grpc.max_receive_message_length", 2 * REQUEST_LIMIT_BYTES),
)

CONCURRENT_CALLS_LIMIT = 20_000
"""Calls served at once, streams included; grpc refuses more with RESOURCE_EXHAUSTED."""

_BACKGROUND_SERVICES = frozenset({health.SERVICE_NAME, reflection.V1, reflection.V1ALPHA})
_OF_REPLICAS = frozenset(
    {
        permits_pb2.DESCRIPTOR.services_by_name["PermitService"].full_name,
        replicas_pb2.DESCRIPTOR.services_by_name["ReplicaService"].full_name,
    }
)


class AddressUnavailable(OSError):
    """The address cannot be listened on."""


ANSWER_SECONDS = 1.0
"""How long calls that are ended by a server that stops have to answer."""


class _Unregistered:
    """Stands for a server where generated code adds services: their methods are found by name.

    For methods that are registered, grpc.aio waits with every call for the next call of each of them: 0.5 us a method.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Registers nothing."""


class RpcServer:
    """Serves baton.v1, health and reflection on one address."""

    def __init__(
        self,
        doors: Doors,
        authenticate: Authenticate,
        address: str = DEFAULT_ADDRESS,
        *,
        on_call: CallObserver | None = None,
        start_span: SpanStarter | None = None,
        watch_seconds: float = WATCH_SECONDS,
        forwarding: Forwarding | None = None,
        shared_address: str = "",
        requests_limit_bytes: int = REQUESTS_LIMIT_BYTES,
        read_room: ReadRoom | None = None,
        write_seconds: float = WRITE_SECONDS,
        receipts: Receipts | None = None,
    ) -> None:
        """Takes what it serves; `address` is `host:port`, where port 0 takes a free one. Nothing is opened yet. Without
        `forwarding` requests about runs of other replicas are refused. `shared_address` is listened on as well, beside
        other servers of this machine that do so: the kernel deals connections out among them. Answers are counted in
        `read_room` until they are taken; who takes nothing of a stream for `write_seconds` is cut off."""
        self._doors = doors
        self._authenticate = authenticate
        self._address, self._shared_address = address, shared_address
        self._on_call = on_call
        self._start_span = start_span
        self._forwarding = forwarding
        self._watches = Watches(watch_seconds)
        self._health = health.aio.HealthServicer()
        self._validator = RequestValidator(_request_types())
        self._interceptor = LayerInterceptor(
            self._layers(),
            _BACKGROUND_SERVICES | _OF_REPLICAS,
            forwarding.forward if forwarding is not None else None,
            RequestRoom(requests_limit_bytes),
            read_room,
            write_seconds,
            receipts,
        )
        self._server: grpc.aio.Server | None = None

    async def start(self) -> int:
        """Listens and serves; returns the port. Raises AddressUnavailable."""
        port = self.listen()
        await self.serve()
        return port

    def listen(self) -> int:
        """Takes the address, and serves nothing yet; returns the port. Raises AddressUnavailable."""
        # Two servers must not share a port unnoticed.
        options = (*OPTIONS, ("grpc.so_reuseport", int(bool(self._shared_address))))
        server = grpc.aio.server(
            interceptors=[self._interceptor], options=options, maximum_concurrent_rpcs=CONCURRENT_CALLS_LIMIT
        )
        self._add_services(_Unregistered(server))
        port = _take(server, self._address)
        self._server = server
        return port

    async def serve(self) -> None:
        """Serves what it listens for, and takes the shared address: not before, as connections would wait here that
        another could serve. Raises AddressUnavailable."""
        assert self._server is not None
        if self._shared_address:
            _take(self._server, self._shared_address)
        await self._server.start()
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        for service in SERVICES:
            await self._health.set(service.full_name, health_pb2.HealthCheckResponse.SERVING)

    async def drain(self) -> None:
        """Says NOT_SERVING and sends watchers elsewhere; calls are still served."""
        await self._health.enter_graceful_shutdown()
        self._watches.end()

    async def stop(self, grace_seconds: float) -> None:
        """Refuses new calls and waits for those that are served, at most `grace_seconds`; then ends them.

        Connections stay open, and calls on them are told to go elsewhere: gRPC would end those that come while it
        closes with CANCELLED. Leave them to the end of the process, or `close` them.
        """
        await self.drain()
        await self._interceptor.refuse_calls(grace_seconds, ANSWER_SECONDS)

    async def close(self) -> None:
        """Closes every connection, as the end of the process does; `stop` first."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    def _layers(self) -> list[Layer]:
        """What stands around every call, outermost first. Outside of all is the LayerInterceptor, which turns what
        any of them raises into a status."""
        layers: list[Layer] = []
        if self._on_call is not None:
            # First, so that it sees calls refused by the others too.
            layers.append(ObservationLayer(self._on_call))
        # Before validation: who may not call learns nothing of what a request should be.
        layers.append(AuthenticationLayer(self._authenticate, frozenset({health.SERVICE_NAME}), self._forwarding))
        if self._start_span is not None:
            # After authentication, whose caller carries the parent; before validation, whose refusals are in the span.
            layers.append(SpanLayer(self._start_span))
        # Last: services are reached by valid requests only.
        layers.append(ValidationLayer(self._validator, frozenset({CHECK_METHOD})))
        return layers

    def _add_services(self, server: Any) -> None:
        submissions = Submissions(self._doors.runs, self._validator, self._start_span)
        run_service_pb2_grpc.add_RunServiceServicer_to_server(
            RunService(self._doors.runs, self._watches, submissions), server
        )
        step_service_pb2_grpc.add_StepServiceServicer_to_server(StepService(self._doors.steps), server)
        approval_service_pb2_grpc.add_ApprovalServiceServicer_to_server(ApprovalService(self._doors.approvals), server)
        workflow_service_pb2_grpc.add_WorkflowServiceServicer_to_server(
            WorkflowService(self._doors.workflows, self._validator), server
        )
        worker_service_pb2_grpc.add_WorkerServiceServicer_to_server(WorkerService(self._doors.workers), server)
        schedule_service_pb2_grpc.add_ScheduleServiceServicer_to_server(ScheduleService(self._doors.schedules), server)
        work_pb2_grpc.add_AttachServiceServicer_to_server(AttachService(self._doors.workers, self._validator), server)
        work_pb2_grpc.add_WorkerServiceServicer_to_server(RelayService(self._doors.workers), server)
        limit_service_pb2_grpc.add_LimitServiceServicer_to_server(LimitService(self._doors.limits), server)
        permits_pb2_grpc.add_PermitServiceServicer_to_server(PermitService(self._doors.permits), server)
        replica_service_pb2_grpc.add_ReplicaServiceServicer_to_server(ReplicaService(self._doors.replicas), server)
        replicas_pb2_grpc.add_ReplicaServiceServicer_to_server(HintService(self._doors.replicas), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.Reflection(
            [*(service.full_name for service in SERVICES), *_BACKGROUND_SERVICES],
            [
                *(service.file.name for service in SERVICES),
                health_pb2.DESCRIPTOR.name,
                # Clients render the details of errors with these.
                "google/rpc/status.proto",
                "google/rpc/error_details.proto",
            ],
            self._doors.workers.descriptor_files,
        ).add_to(server)


def _take(server: grpc.aio.Server, address: str) -> int:
    try:
        port: int = server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if port == 0:
        raise AddressUnavailable(
            f"cannot listen on {address}: it is in use or not an address of this machine; choose another"
        )
    return port


def _request_types() -> Iterator[type[Message]]:
    for service in SERVICES:
        for method in service.methods:
            yield GetMessageClass(method.input_type)
