"""The engine's way to workers: one place that holds the channels, the health streams and the circuits of a replica."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from orchestrator.domain.ids import EndpointKey
from orchestrator.engine.ports import Call, CallListener, EndpointRow, Health, Sending
from orchestrator.outbound.breaker import Circuit
from orchestrator.outbound.calls import Outbound
from orchestrator.outbound.channels import Channels
from orchestrator.outbound.health import HealthWatcher
from orchestrator.outbound.reflection import read_descriptors


class GrpcWorkerGateway:
    """Implements ports.WorkerGateway over gRPC. Belongs to the event loop that it is made on; close it at the end."""

    def __init__(self, circuit_fail_max: int, circuit_reset_seconds: float) -> None:
        self._fail_max, self._reset_seconds = circuit_fail_max, circuit_reset_seconds
        self._channels = Channels()
        self._outbound = Outbound(self._channels)
        self._health = HealthWatcher(self._channels, self._tell)
        self._followers: defaultdict[str, list[Callable[[Health, int | None], None]]] = defaultdict(list)

    def send(self, call: Call, listener: CallListener) -> Sending:
        """See ports.WorkerGateway."""
        return self._outbound.send(call, listener)

    def circuit(self, key: EndpointKey, on_change: Callable[[], None], now: Callable[[], int]) -> Circuit:
        """See ports.WorkerGateway."""
        return Circuit(
            lambda _: on_change(),
            fail_max=self._fail_max,
            reset_timeout_seconds=self._reset_seconds,
            wall_time=now,
        )

    def follow(self, row: EndpointRow, on_change: Callable[[Health, int | None], None]) -> Callable[[], None]:
        """See ports.WorkerGateway."""
        address = row.key.address
        followers = self._followers[address]
        followers.append(on_change)
        self._health.add(address)
        on_change(self._health.health(address), None)

        def unfollow() -> None:
            if on_change not in followers:
                return
            followers.remove(on_change)
            if not followers:
                self._followers.pop(address, None)
                self._health.remove(address)
                self._channels.remove(address)

        return unfollow

    async def read_descriptors(self, address: str) -> tuple[Sequence[bytes], Sequence[str]]:
        """See ports.WorkerGateway."""
        reflected = await read_descriptors(self._channels, address)
        return [file.SerializeToString() for file in reflected.files], reflected.services

    async def close(self) -> None:
        """Ends every health stream and closes every channel."""
        await self._health.close()
        await self._outbound.close()
        await self._channels.close()

    def _tell(self, address: str, health: Health) -> None:
        for follower in list(self._followers.get(address, ())):
            follower(health, None)
