"""Messages that come packed, as inputs, requests and outputs do, held to the type that is expected of them.

What may not enter: errors of a call. Who asks says in which field of its own the message lies.
"""

from __future__ import annotations

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError, Message

from orchestrator.contracts.required import Requirements


class PackedInvalid(Exception):
    """A packed message is not a valid one of its type; `message` says why, and is fit for callers. `field` is the path
    in it of a required field that has no value, "" where the whole is wrong."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field


def unpack(
    given: Any,
    expected: type[Message],
    requirements: Requirements,
    *,
    taker: str,
    what: str,
    may_be_empty: bool = False,
) -> Message:
    """Reads a packed message as the type `expected`.

    Faults begin with `taker`, such as "the workflow takes", and call the message `what`, such as "input". One without
    type and bytes is the empty message where it `may_be_empty`. Raises PackedInvalid where the type is another, the
    bytes are not of that type, or a required field is missing.
    """
    name, told = expected.DESCRIPTOR.full_name, given.type_url.rpartition("/")[2]
    if told != name and (told or given.value or not may_be_empty):
        raise PackedInvalid(f"{taker} a {name}, but the {what} is a {told or 'message of no type'}")
    try:
        message = expected.FromString(given.value)
    except DecodeError:
        raise PackedInvalid(f"the {what} is not a valid {name}") from None
    missing = next(requirements.missing(message), None)
    if missing is not None:
        raise PackedInvalid(f"the required field `{missing}` of {name} has no value", missing)
    return message
