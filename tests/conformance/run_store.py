"""What every RunStore must do: reading, listing and filtering the runs of one namespace."""

from __future__ import annotations

from uuid import UUID

import pytest

from orchestrator.domain.errors import CursorExpired, InvalidCursor, InvalidFilter
from orchestrator.domain.ids import RevisionKey, RunKey
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

    async def test_unfinished_runs_are_counted_by_revision(self, stores: Stores) -> None:
        me, keys = await replica(stores), [run_key() for _ in range(6)]
        names = ("", "refund", "refund", "order", "order", "order")
        await states(stores, me, *(submission(key, workflow=name) for key, name in zip(keys, names, strict=True)))
        await states(stores, me, submission(run_key("bank"), workflow="order"))
        await states(stores, me, ending(keys[5], 2), step(keys[4], 2), ending(keys[0], 2))
        both = {RevisionKey("shop", "order", "r1"): 2, RevisionKey("shop", "refund", "r1"): 2}
        found = await stores.runs.count_unfinished("shop", 10)
        assert (found.by_revision, found.revisions) == (both, 2)
        cut = await stores.runs.count_unfinished("shop", 1)
        assert (len(cut.by_revision), cut.revisions) == (1, 2)
        none = await stores.runs.count_unfinished("empty", 10)
        assert (none.by_revision, none.revisions) == ({}, 0)

    async def test_filters(self, stores: Stores) -> None:
        me, plain, marked, ended = await replica(stores), run_key(), run_key(), run_key()
        await states(
            stores,
            me,
            submission(plain, workflow="refund"),
            submission(marked, labels=("pii", "untrusted"), attributes={"team": "pay", "t'x": "1"}),
            submission(ended, attributes={"team": "ship"}, client_id="me"),
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
            ([FilterTerm("client_id", EQUAL, "me")], {ended}),
            ([FilterTerm("client_id", NOT_EQUAL, "me")], {plain, marked}),
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

    async def test_ends_are_followed_from_one_position_to_the_next(self, stores: Stores) -> None:
        me, keys = await replica(stores), [run_key() for _ in range(5)]
        await states(stores, me, *(submission(key) for key in keys))
        before = await stores.runs.end_position()
        page = await stores.runs.list_ended("shop", [], before, 10, None)
        assert (page.rows, page.more) == ([], False)
        await states(stores, me, ending(keys[0], 2), ending(keys[1], 2))
        page = await stores.runs.list_ended("shop", [], page.position, 10, None)
        assert {row.key for row in page.rows} == set(keys[:2])
        assert {row.state for row in page.rows} == {SUCCEEDED}
        await states(stores, me, ending(keys[2], 2), step(keys[3], 2))
        page = await stores.runs.list_ended("shop", [], page.position, 10, None)
        assert [row.key for row in page.rows] == [keys[2]]
        assert (await stores.runs.list_ended("shop", [], page.position, 10, None)).rows == []
        everything = await stores.runs.list_ended("shop", [], before, 10, None)
        assert {row.key for row in everything.rows} == set(keys[:3])
        assert (await stores.runs.list_ended("bank", [], before, 10, None)).rows == []

    async def test_a_run_that_ends_as_it_begins_is_followed_too(self, stores: Stores) -> None:
        me, key, before = await replica(stores), run_key(), await stores.runs.end_position()
        await states(stores, me, submission(key, end_time=1_700_000_000_000_009))
        assert [row.key for row in (await stores.runs.list_ended("shop", [], before, 10, None)).rows] == [key]

    async def test_pages_of_ends_split_no_commit_and_leave_none_out(self, stores: Stores) -> None:
        me, keys = await replica(stores), [run_key() for _ in range(9)]
        await states(stores, me, *(submission(key) for key in keys))
        position = await stores.runs.end_position()
        for first in (0, 3, 6):
            await states(stores, me, *(ending(key, 2) for key in keys[first : first + 3]))
        pages = []
        more = True
        while more:
            page = await stores.runs.list_ended("shop", [], position, 2, None)
            position, more = page.position, page.more
            pages.append({row.key for row in page.rows})
        assert pages == [set(keys[:3]), set(keys[3:6]), set(keys[6:]), set()]

    async def test_ends_are_filtered_by_terms_and_by_who_wrote_them(self, stores: Stores) -> None:
        me, other = await replica(stores), await replica(stores)
        mine, theirs, before = run_key(), run_key(), await stores.runs.end_position()
        await states(stores, me, submission(mine, attributes={"team": "pay"}, client_id="me"))
        await states(stores, other, submission(theirs))
        await states(stores, me, ending(mine, 2))
        await states(stores, other, ending(theirs, 2))

        async def found(terms: list[FilterTerm], but_of: UUID | None) -> set[RunKey]:
            return {row.key for row in (await stores.runs.list_ended("shop", terms, before, 10, but_of)).rows}

        assert await found([], None) == {mine, theirs}
        assert await found([], me) == {theirs}
        assert await found([], other) == {mine}
        assert await found([FilterTerm("attributes.team", EQUAL, "pay")], None) == {mine}
        assert await found([FilterTerm("client_id", NOT_EQUAL, "me")], None) == {theirs}

    @pytest.mark.parametrize(
        "position", ["", "x", "5", "5:4:", "5:9:4", "5:9:7,6", "5:9:9", "0:9:", "5:9:6,", f"5:{1 << 63}:"]
    )
    async def test_what_is_no_position_is_refused(self, stores: Stores, position: str) -> None:
        with pytest.raises(InvalidCursor):
            await stores.runs.list_ended("shop", [], position, 10, None)

    async def test_a_position_of_another_database_is_refused(self, stores: Stores) -> None:
        with pytest.raises(CursorExpired):
            await stores.runs.list_ended("shop", [], f"{(1 << 60) + 5}:{(1 << 60) + 5}:", 10, None)
