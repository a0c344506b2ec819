"""Channels to workers and replicas: one for each address, for calls, health and reflection. The only maker of gRPC
channels."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import grpc.aio

from orchestrator.domain.errors import WorkerUnreachable

MESSAGE_LIMIT_BYTES = 4 * 1024 * 1024
"""Largest request that is sent and answer that is taken."""

FRAME_ROOM_BYTES = 64 * 1024
"""What a frame of the work stream may have beside one such answer."""

CONNECTIONS_LIMIT = 4_096
"""Most addresses that are held at once; beyond it the least recently used one is closed."""

CONNECT_TIMEOUT_SECONDS = 5.0
RECONNECT_GRACE_SECONDS = 0.5

_ERROR_LIMIT_BYTES = 256 * 1024

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES + FRAME_ROOM_BYTES),
    # An error's text and details travel as metadata; grpc's own limit of 8 KiB would hide the worker's status.
    ("grpc.max_metadata_size", _ERROR_LIMIT_BYTES),
    ("grpc.absolute_max_metadata_size", _ERROR_LIMIT_BYTES),
    # Retries are the engine's: a call repeated here would not be in the journal.
    ("grpc.enable_retries", 0),
    # Probing the line's bandwidth sends a ping beside most messages: a tenth of the CPU time of a busy server. A window
    # that lets any message through at once stands in for what the probes would find.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 20),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.enable_http_proxy", 0),
    # A connection belongs to one channel, so that closing the channel closes it.
    ("grpc.use_local_subchannel_pool", 1),
    # Servers close connections that are pinged more often than every five minutes, which is grpc's default for them.
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 20_000),  # counts for TCP; the next for HTTP/2, where a minute is the default
    ("grpc.http2.ping_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.client_idle_timeout_ms", 2_147_483_647),  # Never: an idle connection would look like a lost one.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # The time one try to connect may take.
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
)

REPLICA_OPTIONS: tuple[tuple[str, int], ...] = (
    *(option for option in _OPTIONS if option[0] not in ("grpc.max_send_message_length", "grpc.keepalive_time_ms")),
    # What a replica takes of its callers, another takes too; its own limits are the judges.
    ("grpc.max_send_message_length", -1),
    # A request may wait for minutes: that its replica is gone must be noticed sooner. Servers of Baton allow it.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
)
"""Options of channels to other replicas."""


class Connection:
    """A channel to one address, and what is known of its connectivity."""

    def __init__(self, address: str, options: tuple[tuple[str, int], ...] = _OPTIONS) -> None:
        self.address = address
        self.channel = grpc.aio.insecure_channel(address, options=options)
        self.users = 0
        self._becoming_ready: asyncio.Task[None] | None = None
        self._down_since: float | None = None

    def is_ready(self) -> bool:
        """Tells whether the connection stands; does not connect."""
        ready = self.channel.get_state() is grpc.ChannelConnectivity.READY
        if ready:
            self._down_since = None
        return ready

    async def wait_ready(self, timeout_seconds: float | None) -> bool:
        """Connects if need be and tells whether the connection stands within the time; None waits without limit."""
        if self.is_ready():
            return True
        if self._down_since is None:
            self._down_since = time.monotonic()
        if self._becoming_ready is None or self._becoming_ready.done():
            # One watch for all who wait: grpc keeps each abandoned one until the next change of state.
            self._becoming_ready = asyncio.create_task(self._become_ready())
        await asyncio.wait((self._becoming_ready,), timeout=timeout_seconds)
        return self.is_ready()

    async def wait_connected(self, timeout_seconds: float) -> bool:
        """Like wait_ready, but where the connection has been down for that long already it waits only a moment.

        grpc goes on trying to connect all the while, so waiting the full time again would tell nothing new.
        """
        if self.is_ready():
            return True
        if self._down_since is not None:
            rest_seconds = self._down_since + timeout_seconds - time.monotonic()
            timeout_seconds = min(timeout_seconds, max(rest_seconds, RECONNECT_GRACE_SECONDS))
        return await self.wait_ready(timeout_seconds)

    async def wait_lost(self) -> None:
        """Returns when the connection that stands is lost; at once if none stands."""
        while self.is_ready():
            await self.channel.wait_for_state_change(grpc.ChannelConnectivity.READY)

    async def close(self) -> None:
        """Closes the channel; calls in flight are cancelled."""
        if self._becoming_ready is not None:
            self._becoming_ready.cancel()
            await asyncio.wait((self._becoming_ready,))
        await self.channel.close()

    async def _become_ready(self) -> None:
        while True:
            state = self.channel.get_state(try_to_connect=True)
            if state in (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.SHUTDOWN):
                return
            await self.channel.wait_for_state_change(state)


class Channels:
    """The connections to all addresses, at most `limit`. Belongs to one event loop; close it at the end."""

    def __init__(self, limit: int = CONNECTIONS_LIMIT, options: tuple[tuple[str, int], ...] = _OPTIONS) -> None:
        self._limit, self._options = limit, options
        self._connections: dict[str, Connection] = {}  # Least recently used first.
        self._removed: set[Connection] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    @contextmanager
    def hold(self, address: str) -> Iterator[Connection]:
        """Gives the connection to `address`, made if there is none, and keeps it from being closed meanwhile.

        Raises WorkerUnreachable where as many addresses are in use as may be, or after close().
        """
        connection = self._take(address)
        connection.users += 1
        try:
            yield connection
        finally:
            connection.users -= 1
            if not connection.users and connection in self._removed:
                self._removed.discard(connection)
                self._close_soon(connection)

    def remove(self, address: str) -> None:
        """Forgets the connection to `address`: closed at once, or when the last who holds it is done."""
        connection = self._connections.pop(address, None)
        if connection is None:
            return
        if connection.users:
            self._removed.add(connection)
        else:
            self._close_soon(connection)

    async def close(self) -> None:
        """Closes every connection; calls in flight end as lost."""
        self._closed = True
        connections = [*self._connections.values(), *self._removed]
        self._connections.clear()
        self._removed.clear()
        for connection in connections:
            self._close_soon(connection)
        if self._closing:
            await asyncio.wait(tuple(self._closing))

    def __len__(self) -> int:
        return len(self._connections)

    def _take(self, address: str) -> Connection:
        if self._closed:
            raise WorkerUnreachable(f"{address} is not called: the server is stopping.")
        connection = self._connections.pop(address, None)
        if connection is None:
            if len(self._connections) >= self._limit:
                self._evict(address)
            connection = Connection(address, self._options)
        self._connections[address] = connection
        return connection

    def _evict(self, wanted: str) -> None:
        unused = next((each.address for each in self._connections.values() if not each.users), None)
        if unused is None:
            raise WorkerUnreachable(f"{wanted} is not called: connections to {self._limit} other addresses are in use.")
        self.remove(unused)

    def _close_soon(self, connection: Connection) -> None:
        task = asyncio.create_task(connection.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
