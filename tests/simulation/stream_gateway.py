"""The product's own gateway in a simulated process: its dialer, its sessions and its sharing of credit, over simulated
channels. Where it makes single calls, those of the simulation take their place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from orchestrator.domain.ids import EndpointKey
from orchestrator.engine.catalogue_ports import EndpointRow
from orchestrator.engine.worker_ports import Answer, Call, CallListener, Health, Sending
from orchestrator.outbound.gateway import GrpcWorkerGateway
from orchestrator.outbound.work_dialer import WorkDialer
from orchestrator.outbound.work_session import Assigned, SessionState, WorkSession
from tests.simulation.streams import SimulatedChannels
from tests.simulation.workers import SimulatedGateway, SimulatedSending

if TYPE_CHECKING:
    from tests.simulation.processes import Process
    from tests.simulation.world import World


class StreamedCall(SimulatedSending):
    """A call that went to a work stream, between the engine and the product's session. Implements CallListener."""

    __slots__ = ("_streams", "assigned", "has_waited", "is_over", "listener", "process")

    assigned: Assigned

    def __init__(self, gateway: StreamGateway, call: Call, listener: CallListener) -> None:
        name = f"{call.run_id[-6:]}/{call.step}/{call.attempt}.{call.delivery}"
        super().__init__(listener, gateway, call, name, False)
        self.is_over = self.has_waited = False
        self.listener, self.process, self._streams = listener, gateway.process_of, gateway.world.streams

    def answered(self, answer: Answer) -> None:
        """See CallListener."""
        what = "answered" if answer.payload is not None else "lost" if answer.lost else "failed"
        self._streams.world.trace(self.process.name, f"{self.name} is {what} on the stream")
        self._streams.judge.answered(self, answer)
        self._end()
        self.listener.answered(answer)

    def progressed(self, percent: float, message: str) -> None:
        """See CallListener."""
        self.listener.progressed(percent, message)

    def waits(self, key: str) -> None:
        """See SimulatedSending.waits."""
        self.has_waited = True
        super().waits(key)

    def cancel(self) -> None:
        """See Sending."""
        self._end()
        self.assigned.cancel()

    def _end(self) -> None:
        self.is_over = True
        self._streams.judge.over(self)
        self._gateway.over(self)


class StreamGateway(SimulatedGateway):
    """Implements WorkerGateway for one replica by the product's."""

    def __init__(self, world: World, process: Process, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.world, self.process_of = world, process
        self._product = _Product(self, SimulatedChannels(world, process))

    def send(self, call: Call, listener: CallListener) -> Sending:
        """See WorkerGateway.send."""
        streamed = StreamedCall(self, call, listener)
        sending = self._product.send(call, streamed)
        if not isinstance(sending, Assigned):
            return sending
        streamed.assigned = sending
        self.world.tally("calls given to a stream")
        self.begins(streamed)
        self.world.streams.judge.given(streamed)
        return streamed

    def send_alone(self, call: Call, listener: CallListener) -> Sending:
        """Makes a call of its own."""
        return super().send(call, listener)

    def is_away(self, address: str) -> bool:
        """See SimulatedGateway.is_away."""
        return self.world.streams.life_at(address) is None

    def gives_to(self, address: str) -> bool:
        """See SimulatedGateway.gives_to."""
        return self._product.gives_to(address)

    def given_up(self) -> None:
        """See SimulatedGateway.given_up."""
        super().given_up()
        if not self.process_of.alive:
            self.world.streams.replica_gone(self.process_of)

    def follow(self, row: EndpointRow, on_change: Callable[[Health, int | None], None]) -> Callable[[], None]:
        """See WorkerGateway.follow."""
        return self._product.follow(row, on_change)

    def lends(self, key: EndpointKey, calls: int) -> None:
        """See WorkerGateway.lends."""
        self._product.lends(key, calls)

    def look_at_all(self) -> None:
        """See SimulatedGateway.look_at_all: streams tell by themselves how their workers are."""
        self._product.look_at_all()

    def leave(self) -> None:
        """See WorkerGateway.leave."""
        self._product.leave()

    async def close(self) -> None:
        """See SimulatedGateway.close."""
        await self._product.close()


class RedialingDialer(WorkDialer):
    """One that opens a stream as soon as the worker knows that the one before is cut, though nobody knows it here: as
    workers do that dial in."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._carried: set[asyncio.Task[bool]] = set()

    async def close(self) -> None:
        """See WorkDialer.close."""
        await super().close()
        for task in self._carried:
            task.cancel()

    async def _stream(self, address: str, metadata: Any, connection: Any, session: WorkSession) -> bool:
        carrying = asyncio.create_task(super()._stream(address, metadata, connection, session))
        self._carried.add(carrying)
        carrying.add_done_callback(self._carried.discard)
        await asyncio.sleep(0.0)
        lost = asyncio.create_task(connection.line.lost_there.wait())
        try:
            await asyncio.wait((carrying, lost), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            carrying.cancel()
            raise
        finally:
            lost.cancel()
        return carrying.result() if carrying.done() else True


class _Product(GrpcWorkerGateway):
    """The product's gateway with simulated parts where it touches the network."""

    def __init__(self, gateway: StreamGateway, channels: SimulatedChannels) -> None:
        super().__init__(1, 1.0, _NoRelays())
        self.replica_id = gateway.replica_id
        self._channels = channels  # type: ignore[assignment]  # what is used of it
        self._outbound = _Alone(gateway)  # type: ignore[assignment]
        self._health = _Health(gateway)  # type: ignore[assignment]
        dialer = RedialingDialer if gateway.world.streams.redials else WorkDialer
        self._dialer = dialer(self._channels, self.replica_id, self._tell, self._serves_no_stream)

    def gives_to(self, address: str) -> bool:
        """Whether the session of an address is open, or there is none any more."""
        session = self._dialer.session(address)
        return session is None or session.state is SessionState.OPEN

    def look_at_all(self) -> None:
        """Tells the health of every address anew."""
        for address in list(self._followers):
            self._tell(address)


class _NoRelays:
    """Implements RelayTokens where nobody attaches."""

    def sign_relay(self, address: str) -> str:
        raise AssertionError("nobody attaches")

    def verify_relay(self, address: str, token: str) -> bool:
        return False


class _Alone:
    """Stands for calls.Outbound."""

    def __init__(self, gateway: StreamGateway) -> None:
        self._gateway = gateway

    def send(self, call: Call, listener: StreamedCall) -> Sending:
        return self._gateway.send_alone(call, listener.listener)

    async def close(self) -> None:
        pass


class _Health:
    """Stands for health.HealthWatcher, where an address serves no stream."""

    def __init__(self, gateway: StreamGateway) -> None:
        self._gateway = gateway
        self._addresses: set[str] = set()

    def add(self, address: str) -> None:
        self._addresses.add(address)

    def remove(self, address: str) -> None:
        self._addresses.discard(address)

    def follows(self, address: str) -> bool:
        return address in self._addresses

    def health(self, address: str) -> Health:
        return "unreachable" if self._gateway.is_away(address) else "serving"

    async def close(self) -> None:
        pass
