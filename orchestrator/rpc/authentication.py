"""The layer that says who calls. What a credential means is known to `security`, which hands in `authenticate`."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.domain.caller import Caller
from orchestrator.rpc.layers import Call, Metadata

Authenticate = Callable[[Metadata], Caller]
"""Says who calls, by the metadata of the call. Raises a BatonError for a credential that it refuses."""


class AuthenticationLayer:
    """Gives every call its caller, but those to `open_services`, which probes without a credential use."""

    def __init__(self, authenticate: Authenticate, open_services: frozenset[str]) -> None:
        self._authenticate = authenticate
        self._open_services = open_services

    def enter(self, call: Call) -> None:
        """Sets the caller before the call is served."""
        if call.service not in self._open_services:
            call.set_caller(self._authenticate(call.metadata))
