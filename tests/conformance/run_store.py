"""What every RunStore must do: reading, listing and filtering the runs of one namespace."""

from __future__ import annotations

import pytest

from orchestrator.domain.errors import InvalidFilter
from orchestrator.domain.ids import RunKey
from orchestrator.engine.ports import Comparison, FilterTerm
from tests.conformance.journal_store import (
    PENDING,
    RUNNING,
    SUCCEEDED,
    Stores,
    ending,
    replica,
    run_key,
    states,
    step,
    submission,
)

EQUAL, NOT_EQUAL, HAS = Comparison.EQUAL, Comparison.NOT_EQUAL, Comparison.HAS


class RunStoreConformance:
    """Lists and filters."""

    async def test_runs_are_listed_newest_first_in_pages(self, stores: Stores) -> None:
        me, keys = await replica(stores), [run_key() for _ in range(7)]
        await states(stores, me, *(submission(key) for key in keys), submission(run_key("bank")))
        newest_first = keys[::-1]
        page = await stores.runs.list_runs("shop", [], None, 4)
        assert [row.key for row in page] == newest_first[:4]
        rest = await stores.runs.list_runs("shop", [], page[-1].key.run_id, 4)
        assert [row.key for row in rest] == newest_first[4:]
        assert await stores.runs.list_runs("empty", [], None, 4) == []

    async def test_filters(self, stores: Stores) -> None:
        me, plain, marked, ended = await replica(stores), run_key(), run_key(), run_key()
        await states(
            stores,
            me,
            submission(plain, workflow="refund"),
            submission(marked, labels=("pii", "untrusted"), attributes={"team": "pay", "t'x": "1"}),
            submission(ended, attributes={"team": "ship"}),
        )
        await states(stores, me, step(marked, 2), ending(ended, 2))
        for terms, expected in (
            ([FilterTerm("workflow", EQUAL, "refund")], {plain}),
            ([FilterTerm("workflow", NOT_EQUAL, "refund")], {marked, ended}),
            ([FilterTerm("revision", EQUAL, "r1")], {plain, marked, ended}),
            ([FilterTerm("state", EQUAL, PENDING)], {plain}),
            ([FilterTerm("state", EQUAL, RUNNING)], {marked}),
            ([FilterTerm("state", EQUAL, SUCCEEDED)], {ended}),
            ([FilterTerm("principal", EQUAL, "ada"), FilterTerm("channel", EQUAL, "cli")], set()),
            ([FilterTerm("workspace", EQUAL, "talk-1")], {plain, marked, ended}),
            ([FilterTerm("labels", HAS, "pii")], {marked}),
            ([FilterTerm("labels", HAS, "pi")], set()),
            ([FilterTerm("attributes.team", EQUAL, "pay")], {marked}),
            ([FilterTerm("attributes.t'x", EQUAL, "1")], {marked}),
            ([FilterTerm("attributes.team", NOT_EQUAL, "pay")], {plain, ended}),
            ([FilterTerm("attributes.team", EQUAL, "' OR true --")], set()),
            ([FilterTerm("create_time", Comparison.GREATER_EQUAL, 1_700_000_000_000_000)], {plain, marked, ended}),
            ([FilterTerm("create_time", Comparison.GREATER, 1_700_000_000_000_000)], set()),
            ([FilterTerm("end_time", Comparison.LESS, 1_800_000_000_000_000)], {ended}),
            ([FilterTerm("end_time", Comparison.LESS_EQUAL, 1_700_000_000_000_008)], set()),
        ):
            found = {row.key for row in await stores.runs.list_runs("shop", terms, None, 10)}
            assert found == expected, terms

    @pytest.mark.parametrize(
        "term",
        [
            FilterTerm("secret", EQUAL, "x"),
            FilterTerm("labels", EQUAL, "pii"),
            FilterTerm("workflow", HAS, "refund"),
        ],
    )
    async def test_terms_that_make_no_sense_are_refused(self, stores: Stores, term: FilterTerm) -> None:
        with pytest.raises(InvalidFilter):
            await stores.runs.list_runs("shop", [term], None, 10)

    async def test_a_run_of_another_namespace_is_not_found(self, stores: Stores) -> None:
        me, key = await replica(stores), run_key()
        await states(stores, me, submission(key))
        assert await stores.runs.get_run(RunKey("bank", key.run_id)) is None
        assert await stores.runs.get_run(run_key()) is None
