"""The critical path as Jaeger's page draws it: backwards from the end, always by the child that ended last.

Kept with its two traps: a child that ends in the microsecond in which the next begins is passed over, and a consumer
under a producer is not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.telemetry.spans import Span


def critical_path(spans: Sequence[Span]) -> list[str]:
    """Gives the names of the spans on the path, in the order of time, each section once."""
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
    sections: list[tuple[Span, int, int]] = []
    _walk(_without_overflow(root, by_parent), by_parent, sections)
    return [span.name for span, _, _ in reversed(sections)]


def _without_overflow(root: Span, by_parent: dict[bytes, list[Span]]) -> Span:
    """Drops children that begin outside their parent, as Jaeger does; one that ends outside would be cut."""
    for parent in (root, *(child for children in list(by_parent.values()) for child in children)):
        kept = [c for c in by_parent.get(parent.span_id, []) if parent.start_time <= c.start_time <= parent.end_time]
        by_parent[parent.span_id] = [c for c in kept if c.end_time <= parent.end_time]
    return root


def _walk(root: Span, by_parent: dict[bytes, list[Span]], sections: list[tuple[Span, int, int]]) -> None:
    path = [root]
    before: int | None = None
    while path:
        span = path[-1]
        children = [c for c in by_parent[span.span_id] if before is None or c.end_time < before]
        last = max(children, key=lambda child: child.end_time, default=None)
        end = span.end_time if before is None else before
        if last is not None:
            if last.end_time != end:
                sections.append((span, last.end_time, end))
            path.append(last)
            before = None
        else:
            if span.start_time != end:
                sections.append((span, span.start_time, end))
            before = span.start_time
            path.pop()
