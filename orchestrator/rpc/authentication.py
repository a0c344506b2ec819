"""The layer that says who calls. What a credential means is known to `security`, which hands in `authenticate`."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.domain.caller import Caller
from orchestrator.rpc.forwarding import Forwarding
from orchestrator.rpc.layers import Call, Metadata

Authenticate = Callable[[Metadata], Caller]
"""Says who calls, by the metadata of the call. Raises a BatonError for a credential that it refuses."""


class AuthenticationLayer:
    """Gives every call its caller, but those to `open_services`, which probes without a credential use. Of a call that
    another replica forwards, that one has seen the credential, and says who calls."""

    def __init__(
        self, authenticate: Authenticate, open_services: frozenset[str], forwarding: Forwarding | None = None
    ) -> None:
        self._authenticate, self._forwarding = authenticate, forwarding
        self._open_services = open_services

    def enter(self, call: Call) -> None:
        """Sets the caller before the call is served."""
        if call.service in self._open_services:
            return
        caller = self._forwarding.caller_of(call) if self._forwarding is not None else None
        call.set_caller(caller if caller is not None else self._authenticate(call.metadata))
