"""The critical path as Jaeger's page draws it: backwards from the end, always by the child that ended last.

Kept with its two traps: a child that ends in the microsecond in which the next begins is passed over, and a consumer
under a producer is not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.telemetry.span import Span


class Section(NamedTuple):
    """A part of the path: a span, and from when to when nothing below it held up the trace."""

    span: Span
    start_time: int
    end_time: int


def critical_path(spans: Sequence[Span]) -> list[str]:
    """Gives the names of the spans on the path, in the order of time, each section once."""
    return [section.span.name for section in sections(spans)]


def sections(spans: Sequence[Span]) -> list[Section]:
    """Gives the path in the order of time."""
    ids = {span.span_id for span in spans}
    by_parent: dict[bytes, list[Span]] = {}
    roots = []
    for span in spans:
        if span.parent_span_id in ids:
            assert span.parent_span_id is not None
            by_parent.setdefault(span.parent_span_id, []).append(span)
        else:
            roots.append(span)
    (root,) = roots
    kept: dict[bytes, list[Span]] = {}
    _cut(root, by_parent, kept)
    found: list[Section] = []
    _walk(root, kept, found)
    return found[::-1]


def _cut(parent: Span, by_parent: dict[bytes, list[Span]], kept: dict[bytes, list[Span]]) -> None:
    """Cuts children that leave their parent, and drops those that lie outside."""
    inside = kept[parent.span_id] = []
    for child in by_parent.get(parent.span_id, ()):
        start, end = max(child.start_time, parent.start_time), min(child.end_time, parent.end_time)
        if start < parent.end_time and end > parent.start_time:
            inside.append(child._replace(start_time=start, end_time=end))
    for child in inside:
        _cut(child, by_parent, kept)


def _walk(root: Span, kept: dict[bytes, list[Span]], found: list[Section]) -> None:
    path = [root]
    before: int | None = None
    while path:
        span = path[-1]
        children = [child for child in kept[span.span_id] if before is None or child.end_time < before]
        last = max(children, key=lambda child: child.end_time, default=None)
        end = span.end_time if before is None else before
        if last is not None:
            if last.end_time != end:
                found.append(Section(span, last.end_time, end))
            path.append(last)
            before = None
        else:
            if span.start_time != end:
                found.append(Section(span, span.start_time, end))
            before = span.start_time
            path.pop()
