"""Requests about runs that another replica drives: sent on to it, and taken from others.

`engine/ownership.py` tells how a verb comes to use this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import ForwardingRefused
from orchestrator.engine.ownership import AnsweredElsewhere, RunElsewhere, SendRequest
from orchestrator.rpc.layers import Call

FORWARD_KEY = "baton-forward"
"""Metadata that holds who calls, as the replica says that forwards the call."""

TOKEN_SECONDS = 30.0
"""How long what a replica says of a caller is taken: a little longer than it takes to connect."""

MAX_SECONDS = 660.0
"""Longest that a forwarded request without a deadline may take: a little longer than any call waits."""

_OWN_METADATA = "baton-"


class ForwardTokens(Protocol):
    """Signs and verifies, by the key that replicas share, who makes a request that one of them forwards."""

    def sign_forward(self, caller: Caller, method: str, request: bytes, expire_time: int) -> str:
        """Makes what stands for `caller` until `expire_time`, for this request alone."""
        ...

    def verify_forward(self, token: str, method: str, request: bytes, now: int) -> Caller | None:
        """Reads the caller; None where no replica signed it for this request, or its time is over."""
        ...


class Forwarding:
    """Both ends of a forwarded request. `now` gives the database's time in microseconds, which all replicas share."""

    def __init__(self, tokens: ForwardTokens, send: SendRequest, now: Callable[[], int]) -> None:
        self._tokens, self._send, self._now = tokens, send, now

    def caller_of(self, call: Call) -> Caller | None:
        """Returns who makes a call that another replica forwards, and marks the call; None for one that comes from
        its caller. Errors: ForwardingRefused."""
        token = next((value for key, value in call.metadata if key == FORWARD_KEY), None)
        if token is None:
            return None
        caller = None
        if call.raw is not None and isinstance(token, str):
            caller = self._tokens.verify_forward(token, call.method, call.raw, self._now())
        if caller is None:
            raise ForwardingRefused(
                f"metadata[{FORWARD_KEY}]: no replica of this server signed it for this request, or its time is over; "
                "leave it out"
            )
        call.forwarded = True
        return caller

    async def ask(self, address: str, caller: Caller, method: str, request: bytes, seconds: float) -> bytes:
        """See ownership.AskElsewhere."""
        token = self._tokens.sign_forward(caller, method, request, self._now() + round(TOKEN_SECONDS * 1_000_000))
        return await self._send(address, method, request, [(FORWARD_KEY, token)], seconds)

    async def forward(self, call: Call, elsewhere: RunElsewhere) -> bytes:
        """Sends a call to the replica that drives its run and returns the answer; what that one refuses ends the call
        in the same way. Errors: RunElsewhere for what was forwarded already, OwnerUnavailable."""
        if call.forwarded or call.raw is None or call.caller is None:
            raise elsewhere
        seconds = call.context.time_remaining()
        token = self._tokens.sign_forward(
            call.caller, call.method, call.raw, self._now() + round(TOKEN_SECONDS * 1_000_000)
        )
        metadata = [(key, value) for key, value in call.metadata if key.startswith(_OWN_METADATA)]
        try:
            return await self._send(
                elsewhere.address,
                call.method,
                call.raw,
                [*metadata, (FORWARD_KEY, token)],
                MAX_SECONDS if seconds is None else min(seconds, MAX_SECONDS),
            )
        except AnsweredElsewhere as answer:
            await call.end(answer.code, answer.message, answer.status)
