"""The engine of one replica: builds its parts, keeps their loops, and starts anew when its lease is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from orchestrator.domain.errors import DatabaseUnavailable
from orchestrator.engine import machine
from orchestrator.engine.approval_ports import ApprovalStore
from orchestrator.engine.approvals import Approvals
from orchestrator.engine.attach import Attachments
from orchestrator.engine.balance import Balance
from orchestrator.engine.cancel import Canceller
from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.catalogue_ports import WorkerStore, WorkflowStore
from orchestrator.engine.child_runs import ChildRuns
from orchestrator.engine.clock import DatabaseClock
from orchestrator.engine.contract_changes import ContractChanges
from orchestrator.engine.delegate import ReadStepToken, Steps
from orchestrator.engine.directory_ports import ReplicaDirectory
from orchestrator.engine.dispatch import Dispatcher, StepToken
from orchestrator.engine.drive import Driver
from orchestrator.engine.ends import Ends
from orchestrator.engine.firing import Firing
from orchestrator.engine.fork import Forker
from orchestrator.engine.handover import HandOver
from orchestrator.engine.homes import Homes
from orchestrator.engine.inspect import RunReader
from orchestrator.engine.lease import LeaseKeeper, OpenReplicaStore
from orchestrator.engine.limit_catalogue import LimitCatalogue
from orchestrator.engine.limit_ports import LimitStore
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.live import LiveRun
from orchestrator.engine.machine import Machine
from orchestrator.engine.mend import Mender
from orchestrator.engine.mend_many import ManyMender
from orchestrator.engine.observer import Observer
from orchestrator.engine.ownership import AskElsewhere, Ownership
from orchestrator.engine.pace import Pace
from orchestrator.engine.park import Parker
from orchestrator.engine.permit_door import PermitDoor
from orchestrator.engine.ports import JournalStore, LeaseLost, Renewal, ReplicaStore, RunStore
from orchestrator.engine.readings import Readings
from orchestrator.engine.recovery import Recovery
from orchestrator.engine.replica_ports import PermitNetwork, ReplicaHints
from orchestrator.engine.replicas import Replicas
from orchestrator.engine.schedule_ports import ScheduleStore
from orchestrator.engine.scheduled_runs import ScheduledRuns
from orchestrator.engine.schedules import Schedules
from orchestrator.engine.scrub import Scrubber
from orchestrator.engine.scrub_ports import ScrubStore
from orchestrator.engine.signals import Signals
from orchestrator.engine.submit import Submitter
from orchestrator.engine.timers import Timers
from orchestrator.engine.together import run_together
from orchestrator.engine.transit import Transit
from orchestrator.engine.words import Words
from orchestrator.engine.worker_ports import WorkerGateway
from orchestrator.engine.workers import WorkerRegistry
from orchestrator.engine.workflows import WorkflowCatalogue

STALL_SECONDS = 0.1
"""An event loop that answers later than this is reported."""


@dataclass(frozen=True, slots=True)
class Stores:
    """The stores that an engine works on."""

    journal: JournalStore
    runs: RunStore
    replicas: ReplicaStore
    workflows: WorkflowStore
    workers: WorkerStore
    approvals: ApprovalStore
    schedules: ScheduleStore
    limits: LimitStore
    scrub: ScrubStore
    directory: ReplicaDirectory


class Runs:
    """Implements api.Runs: each verb is where it is decided."""

    def __init__(
        self,
        reader: RunReader,
        submitter: Submitter,
        canceller: Canceller,
        signals: Signals,
        ends: Ends,
        mender: Mender,
        forker: Forker,
        many: ManyMender,
    ) -> None:
        self.submit = submitter.submit
        self.submit_many = submitter.submit_many
        self.cancel = canceller.cancel
        self.signal = signals.signal
        self.retry = mender.retry
        self.retry_step = mender.retry_step
        self.skip = mender.skip
        self.pause = mender.pause
        self.resume = mender.resume
        self.fork = forker.fork
        self.mend_many = many.mend
        self.get = reader.get
        self.list = reader.list
        self.list_steps = reader.list_steps
        self.list_events = reader.list_events
        self.watch = reader.watch
        self.wait = reader.wait
        self.watch_ends = ends.watch


class Workers:
    """Implements api.Workers: each verb is where it is decided."""

    def __init__(self, registry: WorkerRegistry, attachments: Attachments) -> None:
        self.register = registry.register
        self.get = registry.get
        self.list = registry.list
        self.drain = registry.drain
        self.delete = registry.delete
        self.descriptor_files = registry.descriptor_files
        self.greet = attachments.greet
        self.attach = attachments.attach
        self.relay = attachments.relay


class Engine:
    """One replica's engine. `runs`, `steps`, `approvals`, `workflows`, `workers`, `schedules`, `limits`, `permits` and
    `replicas` are its doors: see api.py."""

    def __init__(
        self,
        stores: Stores,
        open_replica_store: OpenReplicaStore,
        gateway: WorkerGateway,
        network: PermitNetwork,
        hints: ReplicaHints,
        limits: EngineLimits,
        observer: Observer,
        step_token: StepToken,
        read_step_token: ReadStepToken,
        trace_calls: bool,
        new_trace: Callable[[], str],
        ask_elsewhere: AskElsewhere,
        on: Machine | None = None,
    ) -> None:
        self._machine = on or Machine()
        self._stores, self._open_replica_store = stores, open_replica_store
        self._limits, self._observer = limits, observer
        self._address = ""
        self._gateway = gateway
        self._clock = DatabaseClock(self._machine)
        self._dispatcher = Dispatcher(gateway, self._clock, step_token, trace_calls, self._holds_lease)
        timers = Timers(self._clock)
        pace = Pace(self._machine)
        self._driver = Driver(self._clock, timers, limits, observer, stores.journal, self._dispatcher, pace)
        admission = self._driver.admission
        self._catalogue = admission.catalogue = self._new_catalogue()
        self._replica_id: UUID | None = None
        self._homes = admission.homes = self._new_homes(timers, network)
        self.permits = PermitDoor(self._homes, network, lambda: self._replica_id)
        self.limits = LimitCatalogue(self._catalogue, stores.limits, self.permits)
        self._reader = RunReader(self._driver, self._catalogue, stores.runs, stores.journal, self._clock, limits)
        self.read_room = self._reader.room
        self.workflows = WorkflowCatalogue(self._catalogue, stores.workflows, self._clock)
        registry = self._new_registry()
        self._attachments = Attachments(gateway, self._catalogue, registry, limits.attached_stale_seconds)
        self.workers = Workers(registry, self._attachments)
        self._ends = Ends(self._reader, stores.runs, self._driver.journal, self._clock, limits)
        self._submitter = Submitter(
            self._driver, self._catalogue, self.workflows, self._reader, self._ends, self._clock, limits, new_trace
        )
        transit = Transit()
        balance = Balance(lambda: len(self._driver.runs), lambda: self._clock.monotonic_us() / 1_000_000)
        self._recovery = self._new_recovery(transit, balance)
        self._parker = Parker(self._driver, stores.replicas, transit, self._clock, limits, self._recovery.doubt)
        self._words = Words(hints)
        self._handover = self._new_handover(balance)
        self._scrubber = self._new_scrubber(transit)
        self.replicas = Replicas(
            stores.directory, hints, lambda: self._replica_id, lambda: not admission.paused, self._recovery.look
        )
        self._ownership = Ownership(self._driver, self._recovery, stores.replicas, transit)
        self.runs = self._new_runs(transit, ask_elsewhere)
        self.approvals = Approvals(self._driver, self._ownership, self._reader, stores.approvals, self._clock)
        self.steps = Steps(self._driver, self._catalogue, self._ownership, self._reader, read_step_token)
        self._children = self._new_children(ask_elsewhere)
        self._driver.on_child, self._driver.on_child_left = self._children.follow, self._children.leave
        self._driver.on_end = self._run_ended
        scheduled = ScheduledRuns(self.runs, self._catalogue, stores.runs)
        self._firing = Firing(stores.schedules, scheduled, self.runs.cancel, self._clock, limits, observer, new_trace)
        self.schedules = Schedules(stores.schedules, scheduled, self._clock, limits, self._firing.wake)
        self._readings = Readings(self._catalogue.follow)
        self._lost = asyncio.Event()
        self._lease: LeaseKeeper | None = None
        self._loops: asyncio.Task[None] | None = None

    def _new_catalogue(self) -> Catalogue:
        stores, admission = self._stores, self._driver.admission
        return Catalogue(
            stores.workers,
            stores.workflows,
            stores.limits,
            self._gateway,
            admission.released,
            admission.endpoint_changed,
            self._namespace_changed,
            self._limits.revision_cache,
            self._clock.now,
            self._observer,
        )

    def _new_homes(self, timers: Timers, network: PermitNetwork) -> Homes:
        lease_seconds = self._limits.lease_seconds
        return Homes(self._clock, timers, network, self._catalogue.limit, self._know_limits, lease_seconds)

    def _new_registry(self) -> WorkerRegistry:
        stores = self._stores
        changes = ContractChanges(self._catalogue, stores.workflows, stores.runs)
        in_flight = self._limits.default_max_in_flight
        return WorkerRegistry(self._catalogue, stores.workers, self._gateway, changes, in_flight)

    def _new_recovery(self, transit: Transit, balance: Balance) -> Recovery:
        stores = self._stores
        return Recovery(
            self._driver,
            self._catalogue,
            stores.replicas,
            stores.runs,
            stores.journal,
            self._limits,
            self._observer,
            transit,
            balance,
            lambda: self._lease.mark_before if self._lease is not None else 0,
        )

    def _new_handover(self, balance: Balance) -> HandOver:
        return HandOver(
            self._driver,
            self._parker,
            balance,
            self._words,
            self._stores.replicas,
            self._clock,
            self._limits,
            lambda: self._recovery.is_taking,
        )

    def _new_scrubber(self, transit: Transit) -> Scrubber:
        stores = self._stores
        return Scrubber(
            stores.scrub,
            stores.directory,
            stores.replicas,
            stores.journal,
            self._catalogue,
            self._driver,
            self._parker,
            transit,
            self._clock,
            self._limits,
            self._observer,
            lambda: self._replica_id is not None and self._handover.is_oldest(self._replica_id),
            self._recovery.doubt,
        )

    def _new_runs(self, transit: Transit, ask_elsewhere: AskElsewhere) -> Runs:
        stores = self._stores
        canceller = Canceller(self._driver, self._reader, self._ownership)
        signals = Signals(self._driver, self._ownership, self._reader, self._limits)
        mender = Mender(
            self._driver,
            self._catalogue,
            self._reader,
            self._ownership,
            self._submitter,
            transit,
            stores.runs,
            stores.journal,
            self._clock,
        )
        forker = Forker(self._catalogue, self._submitter, stores.runs, stores.journal)
        many = ManyMender(mender, forker, stores.runs, ask_elsewhere)
        return Runs(self._reader, self._submitter, canceller, signals, self._ends, mender, forker, many)

    def _new_children(self, ask_elsewhere: AskElsewhere) -> ChildRuns:
        runs, replicas = self._stores.runs, self._stores.replicas
        return ChildRuns(self._driver, self._submitter, self._reader, runs, replicas, self._ownership, ask_elsewhere)

    def _run_ended(self, live: LiveRun) -> None:
        self._ends.ended(live)
        self._children.run_ended(live)

    def _holds_lease(self) -> bool:
        return self._lease is not None and self._lease.holds

    def now(self) -> int:
        """Gives the time that journals are stamped with: the database's, as estimated, in microseconds."""
        return self._clock.now()

    async def start(self, address: str) -> None:
        """Takes a lease, reads the catalogue, and begins to accept, to adopt and to write. `address` is where other
        replicas reach this one. Errors: DatabaseUnavailable."""
        self._address = self._attachments.address = self._ownership.address = address
        try:
            replica_id = await self._take_lease()
        except LeaseLost:  # The process slept, or the database was slow.
            text = "the lease was over before this replica began; start it again"
            raise DatabaseUnavailable(text, retry_delay_seconds=1.0) from None
        await self._catalogue.start()
        self._loops = asyncio.create_task(self._keep_running(replica_id))
        self._submitter.accepting = True

    async def drain(self) -> None:
        """Takes no new work, lets calls in flight end for a while, makes durable what they gave, and hands each run
        over to other replicas as soon as it is at rest."""
        self._submitter.accepting = False
        self._firing.paused = True
        self._driver.admission.paused = True
        self._reader.draining.set()
        for live in list(self._driver.runs.values()):
            live.leave()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.drain_seconds):
                if self._replica_id is not None:
                    await self._handover.drain(self._replica_id)
                await self._driver.journal.wait_idle()
        self._gateway.leave()

    async def stop(self) -> None:
        """Ends everything and releases the lease; where the engine has failed, it is given up."""
        failed = False
        if self._loops is not None:
            self._loops.cancel()
            (ended,) = await asyncio.gather(self._loops, return_exceptions=True)
            failed = ended is not None and not isinstance(ended, asyncio.CancelledError)
        await self._attachments.close()
        self._driver.forget_all("")
        self._dispatcher.close()
        await self._homes.close()
        self._catalogue.close()
        if self._lease is not None:
            await self._lease.stop(lost=failed)
            # What could not be handed over is to be adopted now.
            await self._handover.tell_all()
        await self._words.close()

    async def wait_stopped(self) -> None:
        """Waits for the engine's loops; returns only where one of them failed. Errors: what it failed with."""
        if self._loops is not None:
            # Shielded: who waits here may give up, and the journal must then still be written.
            await asyncio.shield(self._loops)

    async def _take_lease(self) -> UUID:
        replica_id = UUID(int=machine.new_id().int)
        self._replica_id = replica_id
        # What was taken in since the lease was lost holds permits, and waits for some, that nobody knows from here on.
        self._driver.forget_all("the lease is lost")
        self._homes.begin(replica_id)
        self._lost = asyncio.Event()
        self._lease = LeaseKeeper(
            self._open_replica_store,
            self._clock,
            self._limits.lease_seconds,
            self._limits.stall_seconds,
            self._active_runs,
            self._renewed,
            self._lost.set,
            self._machine.apart(),
        )
        await self._lease.start(replica_id, self._address)
        return replica_id

    def _namespace_changed(self, namespace: str) -> None:
        self._homes.own.limits_changed(namespace)
        self._driver.admission.namespace_changed(namespace)

    def _know_limits(self, namespace: str) -> None:
        """Reads the catalogue of a namespace whose limits are at home here, though no run of it may be."""
        if self._catalogue.expect(namespace):
            self._readings.ask(namespace)

    def _doubt_all(self) -> None:
        """Reads anew what decisions rest on."""
        self._reader.doubt()
        for namespace in self._catalogue.doubt_all():
            self._readings.ask(namespace)

    def _active_runs(self) -> int | None:
        return None if self._driver.admission.paused else len(self._driver.runs)

    def _renewed(self, renewal: Renewal) -> None:
        if self._replica_id is not None:
            self._handover.renewed(self._replica_id, renewal)
        if renewal.replicas is not None:
            self._homes.set_replicas(renewal.replicas)
        for namespace in renewal.changed_namespaces:
            self._catalogue.doubt(namespace)
            self._readings.ask(namespace)

    async def _keep_running(self, replica_id: UUID) -> None:
        while True:
            try:
                await run_together(
                    self._driver.journal.run(replica_id),
                    self._recovery.run(replica_id),
                    self._parker.run(replica_id),
                    self._handover.run(replica_id),
                    self._scrubber.run(replica_id),
                    self._ends.run(replica_id),
                    self._children.run(),
                    self._firing.run(replica_id),
                    self._readings.run(),
                    self._watch_loop(),
                    self._attachments.sweep(),
                    self.permits.run(),
                    self._watch_lease(),
                )
            except* LeaseLost:
                pass
            self._driver.forget_all("the lease is lost")
            self._ends.lose()
            self._children.forget_all()
            # At once, for what is taken in before the lease is taken anew, and again after that.
            self._catalogue.doubt_all()
            self._reader.doubt()
            if self._lease is not None:
                await self._lease.stop(lost=True)
            replica_id = await self._retake_lease()

    async def _retake_lease(self) -> UUID:
        while True:
            try:
                replica_id = await self._take_lease()
            except (DatabaseUnavailable, LeaseLost):
                await asyncio.sleep(0.5)
                continue
            self._doubt_all()
            return replica_id

    async def _watch_lease(self) -> None:
        await self._lost.wait()
        raise LeaseLost

    async def _watch_loop(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_seconds = loop.time() + 1.0
            await asyncio.sleep(1.0)
            late_seconds = loop.time() - due_seconds
            if late_seconds > STALL_SECONDS:
                self._observer.loop_stalled(late_seconds)
