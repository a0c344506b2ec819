"""Answers kept by idempotency key, so that a call made twice takes effect once. Plain memory, no I/O."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from google.protobuf.message import Message

Answer = TypeVar("Answer", bound=Message)

CAPACITY = 100_000
"""Answers kept; the oldest go first."""


class KeyReusedError(Exception):
    """One idempotency key came with two different requests."""


class AnswersByKey(Generic[Answer]):
    """The answers of one method."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[str, tuple[bytes, Answer]] = OrderedDict()

    def find(self, key: str, request: Message) -> Answer | None:
        """Returns the answer already given for `key`; None for a new key, and for the empty one.

        Raises KeyReusedError where that answer was given to another request.
        """
        kept = self._kept.get(key) if key else None
        if kept is None:
            return None
        if kept[0] != request.SerializeToString(deterministic=True):
            raise KeyReusedError(key)
        return kept[1]

    def keep(self, key: str, request: Message, answer: Answer) -> Answer:
        """Keeps `answer` for the next call with `key`, and returns it. Without a key nothing is kept."""
        if key:
            self._kept[key] = (request.SerializeToString(deterministic=True), answer)
            if len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
        return answer
