"""Snapshots of Postgres: which transactions were over at a moment. Runs that ended are followed from one to the next.

A time would not do for this: what commits late carries an old one, and would be passed over.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Self

from orchestrator.domain.errors import FieldFault, InvalidCursor

_FORM = re.compile(r"([0-9]{1,19}):([0-9]{1,19}):((?:[0-9]{1,19},)*[0-9]{1,19})?\Z", re.ASCII)
_LARGEST = (1 << 63) - 1
_LOW = (1 << 32) - 1
_FIRST = 3
"""Numbers whose lower half is below this are given to no transaction, and zero there is no number at all."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Transactions below `end` are over, but the ones `open`, which are ascending and not below `begin`."""

    begin: int
    end: int
    open: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads the form of pg_snapshot. Errors: InvalidCursor."""
        match = _FORM.match(text)
        if match is not None:
            begin, end = int(match[1]), int(match[2])
            under_way = tuple(int(each) for each in match[3].split(",")) if match[3] else ()
            ascending = all(first < second for first, second in itertools.pairwise(under_way))
            inside = not under_way or (begin <= under_way[0] and under_way[-1] < end)
            are_numbers = all(each & _LOW for each in (begin, end, *under_way))
            if begin <= end <= _LARGEST and are_numbers and ascending and inside:
                return cls(begin, end, under_way)
        message = "cursor: not one that WatchRuns or SubmitRuns gave; leave it empty to start now"
        raise InvalidCursor(message, faults=[FieldFault("cursor", "INVALID_CURSOR", message)])

    def up_to(self, transaction: int) -> Self:
        """Makes the snapshot that says the same of the transactions up to one, and of later ones that none is over."""
        end = transaction + 1
        if not end & _LOW:
            end += _FIRST
        return type(self)(min(self.begin, end), end, tuple(each for each in self.open if each < end))

    def __str__(self) -> str:
        return f"{self.begin}:{self.end}:{','.join(map(str, self.open))}"
