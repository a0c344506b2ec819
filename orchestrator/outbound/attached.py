"""Workers that dialled in: sessions whose streams the workers open, and which exist while one does or may come back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from baton.worker.v1 import work_pb2

from orchestrator.engine.ports import Health, ReadFrame, WriteFrame
from orchestrator.outbound.work_session import SessionState, WorkSession
from orchestrator.outbound.work_stream import carry


class AttachedSessions:
    """The sessions of attached workers by the address that they are known by. `on_change(address)` is called when the
    health or the credit of one changed."""

    def __init__(self, on_change: Callable[[str], None]) -> None:
        self._on_change = on_change
        self._sessions: dict[str, WorkSession] = {}
        self._leaving = False

    def session(self, address: str) -> WorkSession | None:
        """The session of a worker that is attached here."""
        return self._sessions.get(address)

    def health(self, address: str) -> tuple[Health, int | None]:
        """Whether a worker can be given work now, and its credit. One without a stream cannot be called at all."""
        session = self._sessions.get(address)
        return ("serving", session.credit) if session is not None and session.ready else ("not_serving", None)

    async def carry(self, address: str, opening: work_pb2.WorkerOpening, read: ReadFrame, write: WriteFrame) -> None:
        """Carries one stream to its end; the session stays for a worker that comes back, until `forget`."""
        session = self._sessions.get(address)
        if session is None:
            session = WorkSession(address, asyncio.get_running_loop(), lambda: self._on_change(address))
            self._sessions[address] = session
            if self._leaving:
                session.leave()
        await carry(session, session.opened(opening), read, write)

    def left(self, address: str) -> bool:
        """Tells whether a worker took its leave, so that nothing is to be waited for."""
        session = self._sessions.get(address)
        return session is None or (session.draining and session.state is not SessionState.OPEN)

    def forget(self, address: str) -> bool:
        """Forgets a session that no stream carries; tells whether there is none any more."""
        session = self._sessions.get(address)
        if session is not None and session.state is SessionState.OPEN:
            return False
        if session is not None:
            del self._sessions[address]
            session.close()
        return True

    def leave(self) -> None:
        """Tells every worker that nothing more comes: the replica drains."""
        self._leaving = True
        for session in self._sessions.values():
            session.leave()

    def close(self) -> None:
        """Ends every session."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()
