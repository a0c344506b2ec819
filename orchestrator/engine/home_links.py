"""Links to other homes: the stream by which this replica asks one other for permits, opened again when it breaks.

What is told is put together when it is sent, so that nothing piles up while the other is away: the opening tells all
that is held, and what was to be given back before is in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from typing import Protocol
from uuid import UUID

from baton.internal.v1 import permits_pb2

from orchestrator.engine.limit_home import holdings_of
from orchestrator.engine.permits import Kind
from orchestrator.engine.replica_ports import PermitExchange, PermitNetwork, ReplicaUnreachable

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0


class HomeLinkOwner(Protocol):
    """Who a link asks for."""

    def opening(self, replica_id: UUID) -> permits_pb2.Opening:
        """What the other is told first."""
        ...

    def asked_of(self, replica_id: UUID) -> list[int]:
        """The wishes that the other is to be told."""
        ...

    def ask_message(self, number: int) -> permits_pb2.Ask | None:
        """What a wish asks for, None where it is known no more."""
        ...

    def received(self, replica_id: UUID, frame: permits_pb2.ExchangeResponse) -> None:
        """Takes in what the other tells."""
        ...


class HomeLink:
    """The stream to one other replica. Belongs to the loop that it is made on; `close` it at the end."""

    def __init__(self, network: PermitNetwork, replica_id: UUID, address: str, owner: HomeLinkOwner) -> None:
        self._network, self._replica_id, self._address, self._owner = network, replica_id, address, owner
        self._asks: dict[int, None] = {}
        self._returns: Counter[tuple[str, Kind]] = Counter()
        self._unused: Counter[tuple[str, Kind]] = Counter()
        self._opens = True
        self._heard = False
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._keep())

    def ask(self, number: int) -> None:
        """Tells what a wish asks for now."""
        self._asks[number] = None
        self._wake.set()

    def give_back(self, namespace: str, kind: Kind, unused: bool) -> None:
        """Gives one permit back."""
        self._returns[namespace, kind] += 1
        if unused:
            self._unused[namespace, kind] += 1
        self._wake.set()

    def open_again(self) -> None:
        """Tells everything anew: the set of replicas is another."""
        self._opens = True
        self._wake.set()

    def close(self) -> None:
        """Ends the stream."""
        self._task.cancel()

    async def closed(self) -> None:
        """Waits for the end of the stream after `close`."""
        await asyncio.gather(self._task, return_exceptions=True)

    async def _keep(self) -> None:
        pause_seconds = FIRST_PAUSE_SECONDS
        while True:
            self._heard = False
            with contextlib.suppress(ReplicaUnreachable):
                await self._carry(self._network.exchange(self._replica_id, self._address))
            pause_seconds = FIRST_PAUSE_SECONDS if self._heard else min(pause_seconds * 2, LONGEST_PAUSE_SECONDS)
            await asyncio.sleep(pause_seconds * random.uniform(0.5, 1.0))

    async def _carry(self, exchange: PermitExchange) -> None:
        self._opens = True
        self._wake.set()
        reading = asyncio.create_task(self._read(exchange))
        reading.add_done_callback(lambda _: self._wake.set())
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                if reading.done():
                    reading.result()
                    return
                frame = self._next_frame()
                if frame is not None:
                    await exchange.write(frame)
        finally:
            # Nothing may be taken from this stream once another has opened: what it gave then is not in the opening.
            reading.cancel()
            exchange.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self, exchange: PermitExchange) -> None:
        while (frame := await exchange.read()) is not None:
            self._heard = True
            self._owner.received(self._replica_id, frame)

    def _next_frame(self) -> permits_pb2.ExchangeRequest | None:
        if not (self._opens or self._asks or self._returns):
            return None
        frame = permits_pb2.ExchangeRequest()
        if self._opens:
            self._opens = False
            self._returns.clear()
            frame.opening.CopyFrom(self._owner.opening(self._replica_id))
            self._asks = dict.fromkeys(self._owner.asked_of(self._replica_id))
        for holding in holdings_of(self._returns):
            frame.returns.add(holding=holding)
        for returned, unused in zip(frame.returns, map(self._unused.__getitem__, self._returns), strict=True):
            returned.unused = unused
        asks = map(self._owner.ask_message, self._asks)
        frame.asks.extend(ask for ask in asks if ask is not None)
        self._returns.clear()
        self._unused.clear()
        self._asks.clear()
        return frame
