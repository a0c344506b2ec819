"""Workers that dialled in: sessions whose streams the workers open, and which exist while one does or may come back."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

from baton.worker.v1 import work_pb2

from orchestrator.engine.worker_ports import Health, ReadFrame, WriteFrame
from orchestrator.outbound.work_session import SessionState, WorkSession
from orchestrator.outbound.work_stream import carry

if TYPE_CHECKING:
    from baton.worker.streams import Link

    from orchestrator.outbound.relay import Relay


class AttachedSessions:
    """The sessions of attached workers by the address that they are known by. `on_change(address)` is called when the
    health or the credit of one changed."""

    def __init__(self, on_change: Callable[[str], None]) -> None:
        self._on_change = on_change
        self._sessions: dict[str, WorkSession] = {}
        self._ids = itertools.count(1)
        self._relays: dict[str, Relay] = {}
        self._leaving = False

    def session(self, address: str) -> WorkSession | None:
        """The session of a worker that is attached here."""
        return self._sessions.get(address)

    def health(self, address: str) -> tuple[Health, int | None]:
        """Whether a worker can be given work now, and this replica's part of its credit. One without a stream cannot be
        called at all."""
        session = self._sessions.get(address)
        if session is None or not session.ready:
            return "not_serving", None
        relay = self._relays[address]
        mine = self._shared(session) - self._lent(address, session) + session.waiting - relay.waiting
        return "serving", min(mine, session.credit)

    async def carry(self, address: str, first: work_pb2.WorkerFrame, read: ReadFrame, write: WriteFrame) -> None:
        """Carries one stream to its end; the session stays for a worker that comes back, until `forget`."""
        session = self._sessions.get(address)
        if session is None:
            loop = asyncio.get_running_loop()
            session = WorkSession(address, loop, lambda: self._changed(address), self._ids)
            self._sessions[address] = session
            # Not before: it brings the worker's half of the SDK.
            from orchestrator.outbound.relay import Relay

            self._relays[address] = Relay(first.opening.worker, session, lambda: self._changed(address))
            if self._leaving:
                self._leave(address)
        await carry(session, session.opened(first.opening, first.drain), read, write)

    async def relay(self, address: str, link: Link) -> bool:
        """Carries the stream of another replica to a worker that is attached here; False where none is. Errors:
        ProtocolError."""
        relay = self._relays.get(address)
        if relay is None:
            return False
        await relay.carry(link)
        return True

    def left(self, address: str) -> bool:
        """Tells whether a worker took its leave, so that nothing is to be waited for."""
        session = self._sessions.get(address)
        if session is None:
            return True
        return session.draining and session.state is not SessionState.OPEN and not session.has_calls

    def forget(self, address: str) -> bool:
        """Forgets a session that no stream carries; tells whether there is none any more."""
        session = self._sessions.get(address)
        if session is not None and session.state is SessionState.OPEN:
            return False
        if session is not None:
            del self._sessions[address]
            self._relays.pop(address).reset()
            session.close()
        return True

    def leave(self) -> None:
        """Tells every worker that nothing more comes: the replica drains."""
        self._leaving = True
        for address in self._sessions:
            self._leave(address)

    def close(self) -> None:
        """Ends every session."""
        for session in self._sessions.values():
            session.close()
        for relay in self._relays.values():
            relay.reset()
        self._sessions.clear()
        self._relays.clear()

    def _leave(self, address: str) -> None:
        self._sessions[address].leave()
        self._relays[address].leave()

    def _changed(self, address: str) -> None:
        session, relay = self._sessions.get(address), self._relays.get(address)
        if session is not None and relay is not None:
            if session.ready:
                relay.resize(max(self._lent(address, session), 1))
            elif not self._leaving:
                # What other replicas give until its worker is back, or is forgotten, is not failed: it waits.
                relay.resize(0)
        self._on_change(address)

    def _lent(self, address: str, session: WorkSession) -> int:
        """The part of a worker's credit that other replicas have: all have equal parts, beside what is for handlers
        that wait for steps of theirs, which goes to the replica whose call that is."""
        replicas = self._relays[address].replicas
        return self._shared(session) * replicas // (replicas + 1)

    @staticmethod
    def _shared(session: WorkSession) -> int:
        return max(session.credit - session.waiting, 0)
