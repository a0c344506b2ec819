"""What has ended waits here for a thread that makes its spans and hands them to the exporters.

The event loop only puts: it makes no span, and waits for nobody. What may not enter: OpenTelemetry (export.py).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from orchestrator.telemetry.ended import Ended
from orchestrator.telemetry.settings import BatchSettings
from orchestrator.telemetry.span import Span
from orchestrator.telemetry.spans import spans_of

SLICE_SPANS = 16
"""Spans made at a time; after them the interpreter is left to the event loop, which would else wait 5 ms for it."""

SLICE_PAUSE_SECONDS = 0.000_05

_LOGGER = logging.getLogger(__name__)


class SpanSink(Protocol):
    """Takes spans, on one thread. Only `abandon` may come from another, and may come while `flush` waits."""

    def add(self, span: Span) -> None:
        """Keeps a span for the next `flush`; never waits."""
        ...

    def flush(self) -> None:
        """Exports what was added; waits for the collector, within its own time."""
        ...

    def close(self) -> None:
        """Ends it after the last flush."""
        ...

    def abandon(self) -> None:
        """Ends a `flush` that is under way."""
        ...


class SpanQueue:
    """Holds at most `settings.queue_limit` spans' worth; what comes beyond is dropped and counted in `dropped`."""

    def __init__(self, sinks: Sequence[SpanSink], settings: BatchSettings) -> None:
        self._sinks, self._settings = tuple(sinks), settings
        self._waiting: deque[Ended | Span] = deque()
        # Each is written by one thread alone: that of the event loop, and the queue's own.
        self._put_spans = 0
        self._taken_spans = 0
        self.dropped = 0
        self._told_dropped = 0
        self._added = 0
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="baton-spans", daemon=True)
        self._thread.start()

    def put(self, what: Ended | Span) -> None:
        """Leaves it to the thread; never waits. Always from one thread."""
        spans = _worth(what)
        waiting = self._put_spans - self._taken_spans + spans
        if self._closing or waiting > self._settings.queue_limit:
            self.dropped += spans
            return
        self._put_spans += spans
        self._waiting.append(what)
        if waiting >= self._settings.batch_limit and not self._wake.is_set():
            self._wake.set()

    def close(self, timeout_seconds: float) -> bool:
        """Exports what waits and stops, waiting at most so long; tells whether all was done in that time. Blocks."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout_seconds)
        if not self._thread.is_alive():
            return True
        for sink in self._sinks:
            threading.Thread(target=sink.abandon, name="baton-spans-abandon", daemon=True).start()
        return False

    def _work(self) -> None:
        while not self._closing:
            full = self._wake.wait(self._settings.delay_seconds)
            self._wake.clear()
            self._export_waiting()
            if not full:
                self._flush()
        self._export_waiting()
        self._flush()
        for sink in self._sinks:
            self._guarded(sink.close)

    def _export_waiting(self) -> None:
        """Makes the spans of all that waits, and exports whole batches; the rest stays with the sinks."""
        sliced = 0
        while self._waiting:
            what = self._waiting.popleft()
            self._taken_spans += _worth(what)
            try:
                spans = [what] if isinstance(what, Span) else spans_of(what)
                for span in spans:
                    self._add(span)
            except Exception:
                _LOGGER.exception("the spans of a run could not be made")
                continue
            sliced += len(spans)
            if sliced >= SLICE_SPANS and not self._closing:
                sliced = 0
                time.sleep(SLICE_PAUSE_SECONDS)
        if self.dropped > self._told_dropped:
            count, self._told_dropped = self.dropped - self._told_dropped, self.dropped
            _LOGGER.warning("spans dropped: the collector takes fewer than there are", extra={"spans": count})

    def _add(self, span: Span) -> None:
        for sink in self._sinks:
            sink.add(span)
        self._added += 1
        if self._added >= self._settings.batch_limit:
            self._flush()

    def _flush(self) -> None:
        if self._added == 0:
            return
        self._added = 0
        for sink in self._sinks:
            self._guarded(sink.flush)

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception:
            _LOGGER.exception("spans could not be exported")


def _worth(what: Ended | Span) -> int:
    return what.least_spans() if isinstance(what, Ended) else 1
