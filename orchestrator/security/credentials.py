"""Credentials: who calls, by the metadata of a call. No transport is known here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import FieldFault, InvalidRequest

Metadata = Sequence[tuple[str, str | bytes]]
"""Keys, in lower case, and values; a key may come more than once."""

CHANNEL_KEY = "baton-channel"
NAMESPACE_KEY = "baton-namespace"
PRINCIPAL_KEY = "baton-principal"
TRACEPARENT_KEY = "traceparent"

DEVELOPMENT_NAMESPACE = "default"
DEVELOPMENT_PRINCIPAL = "anonymous"
DEFAULT_CHANNEL = "grpc"

_CHANNEL = re.compile(r"[a-z0-9-]{1,32}")
_PRINCIPAL = re.compile(r"[!-~](?:[ -~]{0,126}[!-~])?")
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)


class DevelopmentAuthenticator:
    """Takes everybody at their word: for a server that only its own machine reaches.

    Who names no principal is `anonymous`, and who names no namespace is in `default`; `namespaces` are those beside it.
    These names are no credentials: they let people who trust each other tell who submitted a run and who decides on its
    requests, and keep their workflows, workers and runs apart.
    """

    def __init__(self, namespaces: Iterable[str] = ()) -> None:
        self._namespaces = frozenset((DEVELOPMENT_NAMESPACE, *namespaces))

    def authenticate(self, metadata: Metadata) -> Caller:
        """Returns the caller. Raises InvalidRequest for a channel that is not of `[a-z0-9-]{1,32}`, for a principal
        that is not of 1 to 128 printable ASCII characters, and for a namespace that this server does not have."""
        return Caller(
            namespace=self._namespace(metadata),
            principal=read_principal(metadata),
            channel=read_channel(metadata),
            traceparent=read_traceparent(metadata),
        )

    def _namespace(self, metadata: Metadata) -> str:
        values = _values(metadata, NAMESPACE_KEY)
        if not values:
            return DEVELOPMENT_NAMESPACE
        if len(values) > 1 or values[0] not in self._namespaces:
            text = f"the metadata `{NAMESPACE_KEY}` must be one namespace of this server; BATON_NAMESPACES names them"
            raise _invalid(NAMESPACE_KEY, text)
        return values[0]


def read_principal(metadata: Metadata) -> str:
    """Reads the principal that a client names; `anonymous` where it names none."""
    form = "1 to 128 printable ASCII characters with no space at either end, such as `ada@example.org`"
    return _read(metadata, PRINCIPAL_KEY, _PRINCIPAL, form, DEVELOPMENT_PRINCIPAL)


def read_channel(metadata: Metadata) -> str:
    """Reads the channel that a client names; `grpc` where it names none."""
    return _read(metadata, CHANNEL_KEY, _CHANNEL, "1 to 32 of a-z, 0-9 and -, such as `cli`", DEFAULT_CHANNEL)


def _read(metadata: Metadata, key: str, allowed: re.Pattern[str], form: str, default: str) -> str:
    values = _values(metadata, key)
    if not values:
        return default
    if len(values) > 1 or not allowed.fullmatch(values[0]):
        raise _invalid(key, f"the metadata `{key}` must be one value of {form}")
    return values[0]


def _invalid(key: str, text: str) -> InvalidRequest:
    return InvalidRequest(text, faults=[FieldFault(f'metadata["{key}"]', "INVALID_REQUEST", text)])


def read_traceparent(metadata: Metadata) -> str:
    """Reads the W3C trace context as `00-<trace>-<parent>-<flags>`; empty where there is none or it is not valid.

    A wrong one is ignored, not refused, as the standard asks; a later version is read as far as it is known.
    """
    values = _values(metadata, TRACEPARENT_KEY)
    match = _TRACEPARENT.fullmatch(values[0].strip()) if len(values) == 1 else None
    if match is None:
        return ""
    version, trace_id, parent_id, flags, rest = match.groups()
    unknown = version == "ff" or (version == "00" and rest is not None)
    if unknown or trace_id == "0" * 32 or parent_id == "0" * 16:
        return ""
    return f"00-{trace_id}-{parent_id}-{flags}"


def _values(metadata: Metadata, key: str) -> list[str]:
    return [value for name, value in metadata if name == key and isinstance(value, str)]
