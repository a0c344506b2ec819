"""Failures: why an attempt, a step or a run did not succeed, as data. No exception lives here (see errors.py)."""

from __future__ import annotations

import enum
from dataclasses import dataclass

MESSAGE_LIMIT_BYTES = 2_048
"""Longest failure message that is kept; a worker's longer text is cut."""


class Code(enum.IntEnum):
    """Status codes, with the numbers of google.rpc.Code."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Origin(enum.IntEnum):
    """Where a failure arose, with the numbers of baton.v1.FailureOrigin."""

    WORKER = 1
    TRANSPORT = 2
    TIMEOUT = 3
    ORCHESTRATOR = 4
    CANCELLATION = 5


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something did not succeed.

    `details` are serialized google.protobuf.Any messages of the worker's status, oldest first. `outcome_unknown` is
    true where the method may have taken effect although no success was seen.
    """

    code: Code
    reason: str
    message: str
    origin: Origin
    details: tuple[bytes, ...] = ()
    step: str = ""
    outcome_unknown: bool = False


def cut_message(text: str, limit_bytes: int = MESSAGE_LIMIT_BYTES) -> str:
    """Returns `text` shortened to at most `limit_bytes` (3 or more) of UTF-8, with an ellipsis where something was cut.

    What UTF-8 cannot hold (lone surrogates) becomes a question mark.
    """
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= limit_bytes:
        return encoded.decode()
    return encoded[: limit_bytes - 3].decode("utf-8", "ignore") + "…"
