"""Filters in memory mean what they mean in SQL: each is asked of the same runs both ways."""

from __future__ import annotations

import pytest

from orchestrator.engine.matching import facts_of_row, mark_of, meets
from orchestrator.engine.ports import FilterTerm
from orchestrator.rpc.filters import parse_filter
from tests.conformance.journal_store import Stores, replica, run_key, states, submission

END_TIME = 1_700_000_000_000_009

FILTERS = [
    "",
    "workflow = refund",
    "workflow != refund",
    "revision = r1",
    "state = SUCCEEDED",
    "state != SUCCEEDED",
    "principal = ada AND channel = grpc",
    "channel != grpc",
    'client_id = ""',
    "client_id = me",
    "client_id != me",
    "workspace = talk-1",
    "workspace = talk-2",
    "labels:pii",
    "labels:pi",
    "labels:pii AND labels:untrusted",
    "attributes.team = pay",
    "attributes.team != pay",
    'attributes.team = ""',
    'attributes.team != ""',
    "attributes.team = pay AND attributes.team = ship",
    "create_time > 2023-11-14T22:13:19Z",
    "create_time >= 2023-11-14T22:13:20Z",
    "create_time > 2023-11-14T22:13:20Z",
    "end_time = 2023-11-14T22:13:20.000009Z",
    "end_time != 2023-11-14T22:13:20.000009Z",
    "end_time < 2023-11-14T22:13:20.000009Z",
    "end_time <= 2023-11-14T22:13:20.000009Z",
    "client_id = me AND attributes.team = ship AND workflow = fulfil-order",
]


@pytest.fixture
async def ended(stores: Stores) -> Stores:
    me = await replica(stores)
    await states(
        stores,
        me,
        submission(run_key(), workflow="refund", end_time=END_TIME),
        submission(run_key(), labels=("pii", "untrusted"), attributes={"team": "pay"}, end_time=END_TIME),
        submission(run_key(), attributes={"team": "ship"}, client_id="me", end_time=END_TIME),
        submission(run_key(), attributes={"team": ""}, labels=("pi",), end_time=END_TIME + 1),
    )
    return stores


async def test_filters_in_memory_find_what_the_database_finds(ended: Stores) -> None:
    every = await ended.runs.list_runs("shop", [], None, 10)
    assert len(every) == 4
    for text in FILTERS:
        terms = parse_filter(text)
        found = {row.key for row in await ended.runs.list_runs("shop", terms, None, 10)}
        for row in every:
            facts = facts_of_row(row)
            assert meets(facts, terms) == (row.key in found), (text, row)
            mark = mark_of(terms)
            if row.key in found:
                assert mark is None or mark in set(facts.marks()), "the mark would not lead to the watcher"


def test_the_most_telling_mark_is_taken() -> None:
    def mark(text: str) -> object:
        return mark_of(parse_filter(text))

    assert mark("workflow = w AND attributes.team = pay AND client_id = me") == ("client_id", "me")
    assert mark("workflow = w AND attributes.team = pay") == ("attributes.team", "pay")
    assert mark("channel = cli AND workflow = w") == ("workflow", "w")
    assert mark("workflow != w AND labels:pii AND state = FAILED AND end_time > 2023-11-14T22:13:20Z") is None
    no_terms: list[FilterTerm] = []
    assert mark_of(no_terms) is None
