"""Who makes a request, as the credential says. No request names a namespace: it comes from here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """The principal that acts, in its namespace, over a channel such as `grpc` or `cli`."""

    namespace: str
    principal: str
    channel: str
    traceparent: str = ""
