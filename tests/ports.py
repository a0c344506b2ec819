"""Ports of this machine for servers that tests start, stop and start again: nobody else is given one meanwhile.

What a test has told of an address (a worker that is attached, another replica, a client) goes on calling there while
its server is away. Were the port free, the next server that asks the system for one could be given it, in whatever
process, and would be called by strangers.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections import deque

PORTS = (16_000, 32_000)
"""Below those that systems give to servers which ask for any, and to outgoing connections."""

KEPT_PORTS = 500
"""Ports that one process keeps for itself; beyond that the oldest is given back."""

_kept: deque[int] = deque()


def free_port() -> int:
    """A port at 127.0.0.1 that nobody listens at, and that this process keeps: a server which reuses addresses, as that
    of gRPC and of asyncio does, may listen there any number of times, and nobody else is given it."""
    while True:
        port = random.randrange(*PORTS)
        with socket.socket() as kept, contextlib.suppress(OSError):
            kept.bind(("127.0.0.1", port))  # Not where another keeps it.
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _kept.append(kept.detach())
            if len(_kept) > KEPT_PORTS:
                os.close(_kept.popleft())
            return port
