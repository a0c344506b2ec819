"""Workers: registers them with their contracts, and tells how this replica sees them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import UUID

from baton.v1 import contract_report_pb2, worker_pb2, worker_service_pb2
from baton.worker.v1 import work_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.message import DecodeError

from orchestrator.contracts.descriptors import Contract, read_contract
from orchestrator.contracts.descriptors import InvalidContract as ContractFault
from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import FieldFault, InvalidContract, WorkerNotFound
from orchestrator.domain.ids import EndpointKey, WorkerKey
from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.catalogue_ports import ContractRow, EndpointRow, Reach, WorkerRow, WorkerStore
from orchestrator.engine.contract_changes import ContractChanges, refusal
from orchestrator.engine.endpoints import Endpoint
from orchestrator.engine.messages import to_timestamp
from orchestrator.engine.worker_ports import WorkerGateway

HEALTH = {
    "serving": worker_pb2.ENDPOINT_HEALTH_SERVING,
    "not_serving": worker_pb2.ENDPOINT_HEALTH_NOT_SERVING,
    "unreachable": worker_pb2.ENDPOINT_HEALTH_UNREACHABLE,
    "unknown": worker_pb2.ENDPOINT_HEALTH_UNSPECIFIED,
}
WORK_STREAM_SERVICE = "baton.worker.v1.WorkerService"
"""What a worker serves that takes its work on a stream."""

_OF_BATON = "baton.v1.RunService"
"""What tells a Baton: who means to call one as a worker names the services to take."""

CIRCUIT = {
    "closed": worker_pb2.CIRCUIT_STATE_CLOSED,
    "open": worker_pb2.CIRCUIT_STATE_OPEN,
    "half_open": worker_pb2.CIRCUIT_STATE_HALF_OPEN,
}


class WorkerRegistry:
    """Workers of the caller's namespace."""

    def __init__(
        self,
        catalogue: Catalogue,
        store: WorkerStore,
        gateway: WorkerGateway,
        changes: ContractChanges,
        default_max_in_flight: int,
    ) -> None:
        self._catalogue, self._store, self._gateway, self._changes = catalogue, store, gateway, changes
        self._default_max_in_flight = default_max_in_flight

    async def register(
        self, caller: Caller, request: worker_service_pb2.RegisterWorkerRequest
    ) -> worker_service_pb2.RegisterWorkerResponse:
        """See RegisterWorker."""
        contract, reach = await self._contract(request)
        key = EndpointKey(caller.namespace, request.worker, request.address)
        report = await self._check(key, contract, request.force or request.validate_only)
        if not request.validate_only:
            await self._put(key, contract, request.max_in_flight, reach)
        row = self._catalogue.workers(key.namespace).get(key.worker)
        worker = self._render(row) if row is not None else None
        return worker_service_pb2.RegisterWorkerResponse(worker=worker, report=report)

    async def attach(self, key: EndpointKey, opening: work_pb2.WorkerOpening, reach: Reach) -> None:
        """Stores the endpoint of a worker that dialled in.

        Errors: InvalidContract, ContractBreaksWorkflows, DatabaseUnavailable.
        """
        try:
            contract = read_contract(opening.contract.file, opening.services)
        except ContractFault as error:
            raise _invalid_contract("opening.contract", str(error)) from None
        await self._check(key, contract, opening.force)
        await self._put(key, contract, opening.max_in_flight, reach)

    async def detach(self, key: EndpointKey, replica_id: UUID) -> None:
        """Removes the endpoint of a worker that is attached to this replica process no more."""
        if await self._store.delete_attached(key, replica_id):
            await self._catalogue.refresh(key.namespace)

    async def get(self, caller: Caller, worker: str) -> worker_pb2.Worker:
        """See GetWorker."""
        await self._catalogue.meet(caller.namespace)
        row = self._catalogue.workers(caller.namespace).get(worker)
        if row is None:
            await self._catalogue.refresh(caller.namespace)
        return self._shown(EndpointKey(caller.namespace, worker, ""))

    async def list(self, caller: Caller, after: str, limit: int) -> Sequence[worker_pb2.Worker]:
        """See ListWorkers."""
        await self._catalogue.meet(caller.namespace)
        rows = self._catalogue.workers(caller.namespace)
        names = sorted(name for name in rows if name > after)[:limit]
        return [self._render(rows[name]) for name in names]

    async def drain(self, caller: Caller, worker: str, address: str) -> worker_pb2.Worker:
        """See DrainWorker."""
        if await self._store.set_draining(WorkerKey(caller.namespace, worker), address) is None:
            raise _not_found(worker, address)
        await self._catalogue.refresh(caller.namespace)
        return self._shown(EndpointKey(caller.namespace, worker, address))

    async def delete(self, caller: Caller, worker: str, address: str) -> worker_pb2.Worker:
        """See DeleteWorker."""
        await self._catalogue.meet(caller.namespace)
        row = self._catalogue.workers(caller.namespace).get(worker)
        shown = self._render(row) if row is not None else None
        deleted = await self._store.delete_worker(WorkerKey(caller.namespace, worker), address)
        if deleted is None:
            raise _not_found(worker, address)
        await self._catalogue.refresh(caller.namespace)
        return shown if shown is not None else self._render(deleted)

    def descriptor_files(self, namespace: str) -> Iterable[descriptor_pb2.FileDescriptorProto]:
        """Files of every registered contract, for server reflection."""
        for _, contract in self._catalogue.contracts(namespace):
            yield from descriptor_pb2.FileDescriptorSet.FromString(contract.files).file

    async def _contract(self, request: worker_service_pb2.RegisterWorkerRequest) -> tuple[Contract, Reach]:
        wanted = [name for name in request.services if name != WORK_STREAM_SERVICE]
        try:
            if request.HasField("contract"):
                work_stream = any(
                    f"{file.package}.{service.name}" == WORK_STREAM_SERVICE
                    for file in request.contract.file
                    for service in file.service
                )
                return read_contract(request.contract.file, wanted), Reach(work_stream)
            described = await self._gateway.read_descriptors(request.address)
            if not wanted and _OF_BATON in described.services:
                raise ContractFault("a Baton answers there, not a worker; give the address of the worker")
            files = [descriptor_pb2.FileDescriptorProto.FromString(one) for one in described.files]
            return read_contract(files, wanted or described.services), Reach(described.work_stream)
        except (ContractFault, DecodeError) as error:
            text = str(error) if isinstance(error, ContractFault) else "the descriptors cannot be parsed"
            path = "contract" if request.HasField("contract") else "address"
            raise _invalid_contract(path, text) from None

    async def _check(self, key: EndpointKey, contract: Contract, allowed: bool) -> contract_report_pb2.ContractReport:
        """Reports what a contract breaks. Errors: ContractBreaksWorkflows, unless that is allowed."""
        report = await self._changes.report(key, contract)
        if report.broken and not allowed:
            raise refusal(key.worker, report)
        return report

    async def _put(self, key: EndpointKey, contract: Contract, max_in_flight: int, reach: Reach) -> None:
        await self._catalogue.meet(key.namespace)
        known = self._catalogue.workers(key.namespace).get(key.worker)
        default = known.max_in_flight if known is not None else self._default_max_in_flight
        services = tuple(service.name for service in contract.services)
        row = ContractRow(contract.digest, contract.files, services)
        await self._store.put_endpoint(key, max_in_flight or default, row, reach)
        await self._catalogue.refresh(key.namespace)

    def _shown(self, key: EndpointKey) -> worker_pb2.Worker:
        row = self._catalogue.workers(key.namespace).get(key.worker)
        if row is None:
            raise _not_found(key.worker, "")
        return self._render(row)

    def _render(self, row: WorkerRow) -> worker_pb2.Worker:
        message = worker_pb2.Worker(
            name=row.key.worker, max_in_flight=row.max_in_flight, create_time=to_timestamp(row.create_time)
        )
        for endpoint_row in row.endpoints:
            message.endpoints.append(self._endpoint(endpoint_row, self._catalogue.endpoint(endpoint_row.key)))
        digests = sorted({endpoint_row.contract_digest for endpoint_row in row.endpoints})
        services = {
            service.name: service
            for digest in digests
            if (contract := self._catalogue.contract(digest)) is not None
            for service in contract.services
        }
        for name in sorted(services):
            message.services.add(service=name).methods.extend(
                worker_pb2.MethodContract(
                    method=method.name,
                    input_type=method.input_type,
                    output_type=method.output_type,
                    idempotency_level=method.idempotency_level,
                )
                for method in services[name].methods
                if not method.client_streaming and not method.server_streaming
            )
        return message

    @staticmethod
    def _endpoint(row: EndpointRow, endpoint: Endpoint | None) -> worker_pb2.Endpoint:
        message = worker_pb2.Endpoint(
            address=row.key.address,
            state=worker_pb2.ENDPOINT_STATE_DRAINING if row.draining else worker_pb2.ENDPOINT_STATE_ACTIVE,
            contract_digest=row.contract_digest,
            create_time=to_timestamp(row.create_time),
        )
        if row.reach.attached_replica is not None:
            message.transport = worker_pb2.ENDPOINT_TRANSPORT_ATTACHED
        elif row.reach.work_stream:
            message.transport = worker_pb2.ENDPOINT_TRANSPORT_STREAM
        else:
            message.transport = worker_pb2.ENDPOINT_TRANSPORT_UNARY
        if endpoint is not None:
            message.credit = endpoint.max_in_flight
            message.health = HEALTH[endpoint.health]
            message.circuit = CIRCUIT[endpoint.circuit.state]
            message.in_flight = endpoint.in_flight
            until_time = endpoint.circuit.until_time
            if until_time is not None:
                message.circuit_until_time.CopyFrom(to_timestamp(until_time))
        return message


def _invalid_contract(path: str, text: str) -> InvalidContract:
    return InvalidContract(f"{path}: {text}", faults=[FieldFault(path, "INVALID_CONTRACT", text)])


def _not_found(worker: str, address: str) -> WorkerNotFound:
    what = f"worker {worker} has no address {address}" if address else f"no worker is named {worker}"
    return WorkerNotFound(f"{what}; list them with ListWorkers", metadata={"worker": worker})
