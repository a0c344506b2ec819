"""Spans as the bytes of OTLP (opentelemetry/proto/trace/v1/trace.proto), written without message objects in between.

Through OpenTelemetry's own classes a span costs ten times as much. What may not enter: OpenTelemetry, sockets, threads.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import lru_cache

from orchestrator.telemetry.span import Attribute, Span, SpanKind

_KINDS = {SpanKind.INTERNAL: 1, SpanKind.SERVER: 2, SpanKind.CLIENT: 3}
_TRACE_ID, _SPAN_ID, _PARENT_SPAN_ID = b"\x0a\x10", b"\x12\x08", b"\x22\x08"
_TIMES = struct.Struct("<BQBQ")
_START_TIME, _END_TIME = 0x39, 0x41
_LOCAL = b"\x85\x01\x00\x01\x00\x00"
"""Flags: the parent is known to be of this very process."""
_LINK = b"\x6a\x21" + _TRACE_ID
_LINK_END = b"\x35\x00\x01\x00\x00"
_NO_STATUS = b"\x7a\x00"
_ERROR = 2


def encode_span(span: Span) -> bytes:
    """Gives one message Span."""
    parts = [_TRACE_ID, span.trace_id, _SPAN_ID, span.span_id]
    if span.parent_span_id is not None:
        parts += (_PARENT_SPAN_ID, span.parent_span_id)
    parts += (
        _name_and_kind(span.name, span.kind),
        _TIMES.pack(_START_TIME, span.start_time * 1_000, _END_TIME, span.end_time * 1_000),
        *(_attribute(name, value) for name, value in span.attributes.items()),
    )
    for link in span.links:
        parts += (_LINK, span.trace_id, _SPAN_ID, link, _LINK_END)
    parts += (_status(span.error_code), _LOCAL)
    return b"".join(parts)


def delimited(number: int, content: bytes) -> bytes:
    """Gives a field of bytes, text or a message: its tag, its length, its content. Numbers up to 15."""
    return bytes((number << 3 | 2,)) + _varint(len(content)) + content


def joined(number: int, contents: Iterable[bytes]) -> bytes:
    """Gives a repeated field."""
    return b"".join([delimited(number, content) for content in contents])


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


@lru_cache(maxsize=4_096)
def _name_and_kind(name: str, kind: SpanKind) -> bytes:
    return delimited(5, name.encode()) + bytes((0x30, _KINDS[kind]))


@lru_cache(maxsize=16_384)  # Nearly all recur: only the id of the run is new with each.
def _attribute(name: str, value: Attribute) -> bytes:
    # A negative number has ten bytes, as in every varint of this format.
    any_value = delimited(1, value.encode()) if isinstance(value, str) else b"\x18" + _varint(value & (1 << 64) - 1)
    return delimited(9, delimited(1, name.encode()) + delimited(2, any_value))


@lru_cache(maxsize=64)
def _status(error_code: str) -> bytes:
    return delimited(15, delimited(2, error_code.encode()) + bytes((0x18, _ERROR))) if error_code else _NO_STATUS
