"""The protobuf wire format, read without descriptors: for options and for the syntax trees that CEL serializes.

Only reading, only what those two need. Nothing here knows what the fields mean.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

Field = tuple[int, int | bytes]
"""Number of a field and its value: int for varints and fixed-width fields, bytes for length-delimited ones."""


class MalformedWire(ValueError):
    """The bytes are not in the protobuf wire format."""


def varint(data: bytes, position: int) -> tuple[int, int]:
    """Reads a varint at `position`; returns it, unsigned, with the position after it."""
    result = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise MalformedWire("truncated varint")
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7


def fields(data: bytes) -> Iterator[Field]:
    """Yields the fields of a serialized message in their order. Groups are refused."""
    position = 0
    while position < len(data):
        tag, position = varint(data, position)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, position = varint(data, position)
            yield number, value
        elif kind == 2:
            length, position = varint(data, position)
            if position + length > len(data):
                raise MalformedWire("truncated field")
            yield number, data[position : position + length]
            position += length
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
            if position + length > len(data):
                raise MalformedWire("truncated field")
            yield number, int.from_bytes(data[position : position + length], "little")
            position += length
        else:
            raise MalformedWire(f"wire type {kind}")


def varints(value: int | bytes) -> list[int]:
    """Returns the varints of one occurrence of a repeated field, packed or not."""
    if isinstance(value, int):
        return [value]
    found, position = [], 0
    while position < len(value):
        one, position = varint(value, position)
        found.append(one)
    return found


def signed(value: int) -> int:
    """Returns an int64 that was read as an unsigned varint."""
    return value - (1 << 64) if value >= 1 << 63 else value


def double(value: int) -> float:
    """Returns a double that was read as fixed64."""
    return float(struct.unpack("<d", value.to_bytes(8, "little"))[0])
