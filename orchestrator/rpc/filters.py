"""Filters of ListRuns: a small part of the filter language of AIP-160, read into FilterTerms.

`term (AND term)*`, each `field operator value`. What a term means to a database is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NoReturn

from baton.v1.run_pb2 import RunState

from orchestrator.contracts.violations import closest
from orchestrator.domain import states
from orchestrator.domain.errors import FieldFault, InvalidFilter
from orchestrator.engine.ports import Comparison, FilterTerm

TERM_LIMIT = 32
"""Terms of one filter."""

_EQUALITY = frozenset({Comparison.EQUAL, Comparison.NOT_EQUAL})
_ORDER = frozenset(Comparison) - {Comparison.HAS}

_OPERATORS: Mapping[str, frozenset[Comparison]] = {
    "workflow": _EQUALITY,
    "revision": _EQUALITY,
    "state": _EQUALITY,
    "principal": _EQUALITY,
    "channel": _EQUALITY,
    "client_id": _EQUALITY,
    "workspace": _EQUALITY,
    "labels": frozenset({Comparison.HAS}),
    "create_time": _ORDER,
    "end_time": _ORDER,
}
_ATTRIBUTE = "attributes."
_ATTRIBUTE_KEY = re.compile(r"[a-z][a-z0-9_.-]{0,62}\Z")
_FIELD_NAMES = (*_OPERATORS, "attributes.KEY")

_STATE_PREFIX = "RUN_STATE_"
_STATES = {name.removeprefix(_STATE_PREFIX): number for name, number in RunState.items() if number}

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<operator><=|>=|!=|[=<>:])
      | (?P<word>[^\s"'()=<>!:,]+)
      | (?P<other>\S)
    )""",
    re.VERBOSE | re.DOTALL,
)
_BARE_VALUE = re.compile(r"[^\s\"'()=<>!,]+")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)

_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)\Z",
    re.ASCII,
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class _Token:
    """A piece of a filter; `position` counts characters from 1."""

    kind: str
    text: str
    position: int


def parse_filter(text: str) -> list[FilterTerm]:
    """Reads a filter; an empty one has no terms. Raises InvalidFilter, which names the position and the cure."""
    return _Parser(text).terms()


def require_ends(terms: Sequence[FilterTerm]) -> None:
    """Refuses a filter of ends that asks for a state in which no run has ended: nothing would ever be told."""
    for term in terms:
        if term.field == "state" and term.comparison is Comparison.EQUAL and term.value not in states.ENDED_RUN:
            name = states.RunState(int(term.value)).name
            ends = ", ".join(state.name for state in sorted(states.ENDED_RUN))
            text = f"filter: runs are told as they end, never while {name}; take one of {ends}"
            raise InvalidFilter(
                text, metadata={"field": "state"}, faults=[FieldFault("filter", "INVALID_FILTER", text)]
            )


class _Parser:
    """Reads one filter from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._index = 0

    def terms(self) -> list[FilterTerm]:
        """Reads all terms."""
        terms: list[FilterTerm] = []
        if self._peek() is None:
            return terms
        while True:
            terms.append(self._term())
            joint = self._take()
            if joint is None:
                return terms
            if joint.text != "AND" or joint.kind != "word":
                cure = "; write AND" if joint.text.lower() in ("and", "&&", "&", ",") else ""
                _refuse(joint.position, f"expected AND or the end, found `{joint.text}`{cure}; terms join only by AND")
            if len(terms) == TERM_LIMIT:
                _refuse(joint.position, f"more than {TERM_LIMIT} terms")

    def _term(self) -> FilterTerm:
        field = self._take()
        if field is None:
            _refuse(len(self._text) + 1, "expected a field, found the end")
        if field.kind != "word" or field.text in ("AND", "OR", "NOT") or field.text.startswith("-"):
            text = f"expected a field, found `{field.text}`"
            _refuse(field.position, f"{text}; there are no brackets, no OR and no NOT, and != negates a term")
        allowed = _allowed(field)
        operator = self._take()
        if operator is None or operator.kind != "operator":
            position, found = (
                (operator.position, f"`{operator.text}`") if operator else (len(self._text) + 1, "the end")
            )
            _refuse(position, f"expected {_names(allowed)} after `{field.text}`, found {found}", field.text)
        comparison = Comparison(operator.text)
        if comparison not in allowed:
            text = f"`{field.text}` takes {_names(allowed)}, not `{operator.text}`"
            _refuse(operator.position, text, field.text)
        value = self._value(field.text)
        return FilterTerm(field.text, comparison, _convert(field.text, value))

    def _value(self, field: str) -> _Token:
        """Reads a value, in quotes or bare; a bare one may hold colons, as times do."""
        token = self._peek()
        if token is None:
            _refuse(len(self._text) + 1, f"expected a value for `{field}`, found the end", field)
        if token.kind == "quoted":
            self._take()
            return _Token("value", _ESCAPE.sub(r"\1", token.text[1:-1]), token.position)
        bare = _BARE_VALUE.match(self._text, token.position - 1)
        if bare is None:
            cure = "; the quote is not closed" if token.text in "\"'" else "; quote values that hold other characters"
            _refuse(token.position, f"expected a value for `{field}`, found `{token.text}`{cure}", field)
        self._index = bare.end()
        return _Token("value", bare.group(), token.position)

    def _peek(self) -> _Token | None:
        match = _TOKEN.match(self._text, self._index)
        if match is None:
            return None
        kind = str(match.lastgroup)
        return _Token(kind, match.group(kind), match.start(kind) + 1)

    def _take(self) -> _Token | None:
        token = self._peek()
        if token is not None:
            self._index = token.position - 1 + len(token.text)
        return token


def _allowed(field: _Token) -> frozenset[Comparison]:
    """Returns the operators of a field."""
    if field.text.startswith(_ATTRIBUTE):
        if not _ATTRIBUTE_KEY.match(field.text, len(_ATTRIBUTE)):
            text = f"`{field.text[len(_ATTRIBUTE) :]}` cannot be the key of an attribute"
            _refuse(field.position, f"{text}; keys are a lower-case letter and then a-z 0-9 _ . -", field.text)
        return _EQUALITY
    allowed = _OPERATORS.get(field.text)
    if allowed is None:
        hint = closest(field.text, _FIELD_NAMES) or f"; the fields are {', '.join(_FIELD_NAMES)}"
        _refuse(field.position, f"runs cannot be filtered by `{field.text}`{hint}", field.text)
    return allowed


def _convert(field: str, value: _Token) -> str | int:
    """Reads a value as its field needs it."""
    if field == "state":
        number = _STATES.get(value.text.removeprefix(_STATE_PREFIX))
        if number is None:
            hint = closest(value.text, _STATES) or f"; the states are {', '.join(_STATES)}"
            _refuse(value.position, f"`{value.text}` is not a state{hint}", field)
        return number
    if field in ("create_time", "end_time"):
        return _instant(field, value)
    return value.text


def _instant(field: str, value: _Token) -> int:
    """Reads an RFC 3339 time as microseconds since the Unix epoch; smaller fractions are cut off."""
    match = _TIME.match(value.text)
    if match is not None:
        date, clock, fraction, offset = match.groups()
        zone = "+00:00" if offset in "Zz" else offset
        with suppress(ValueError, OverflowError):
            moment = datetime.fromisoformat(f"{date}T{clock}{zone}")
            return (moment - _EPOCH) // timedelta(microseconds=1) + int((fraction or "0")[:6].ljust(6, "0"))
    raise _refusal(value.position, f"`{value.text}` is not a time such as `2026-01-01T00:00:00Z` (RFC 3339)", field)


def _names(allowed: frozenset[Comparison]) -> str:
    return " ".join(f"`{each.value}`" for each in Comparison if each in allowed)


def _refuse(position: int, text: str, field: str = "") -> NoReturn:
    raise _refusal(position, text, field)


def _refusal(position: int, text: str, field: str = "") -> InvalidFilter:
    message = f"filter, character {position}: {text}"
    metadata = {"position": str(position)}
    if field:
        metadata["field"] = field
    return InvalidFilter(message, metadata=metadata, faults=[FieldFault("filter", "INVALID_FILTER", message)])
