"""The messages of the no-op service where the SDK looks for those of a generated servicer."""

from __future__ import annotations

from benchmarks.contract import DoRequest, DoResponse

DESCRIPTOR = DoRequest.DESCRIPTOR.file

__all__ = ["DESCRIPTOR", "DoRequest", "DoResponse"]
