"""Typed payloads: messages into google.protobuf.Any and back."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf import any_pb2, descriptor_pool, empty_pb2, message_factory
from google.protobuf.message import Message

from baton.descriptors import descriptor_of

M = TypeVar("M", bound=Message)


class OutputTypeError(TypeError):
    """A payload is not of the expected type, or of a type that this program does not know."""


def pack(message: Message) -> any_pb2.Any:
    """Returns a message as Any."""
    packed = any_pb2.Any()
    packed.Pack(message, deterministic=True)
    return packed


def unpack(payload: any_pb2.Any, message_class: type[M], what: str = "output") -> M:
    """Returns the message in an Any; raises OutputTypeError, which names `what` it is, where it is of another type."""
    message = message_class()
    if not payload.Unpack(message):
        given = payload.TypeName() or "nothing"
        raise OutputTypeError(f"the {what} is {given}, not {descriptor_of(message_class).full_name}")
    return message


def unpack_known(payload: any_pb2.Any) -> Message:
    """Returns the message in an Any by its own type name; an Empty where there is none.

    Raises OutputTypeError where no generated module that was imported has the type.
    """
    if not payload.type_url:
        return empty_pb2.Empty()
    try:
        descriptor = descriptor_pool.Default().FindMessageTypeByName(payload.TypeName())
    except KeyError:
        raise OutputTypeError(
            f"no generated module that was imported has {payload.TypeName()}; import it, or submit with output="
        ) from None
    return unpack(payload, message_factory.GetMessageClass(descriptor))
