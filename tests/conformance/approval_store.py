"""What every ApprovalStore must do: finding what waits for people in one namespace, page by page.

A test module subclasses `ApprovalStoreConformance` and gives the fixtures `stores` and `approvals`.
"""

from __future__ import annotations

from typing import Protocol
from uuid import UUID

import pytest

from orchestrator.domain.ids import RunKey
from orchestrator.domain.states import EventKind
from orchestrator.engine.approval_ports import ApprovalPage, ApprovalPosition, ApprovalStore
from orchestrator.engine.ports import JournalRow, RunEntry
from tests.conformance.journal_store import RUNNING, Stores, ending, replica, run_key, states, submission

UNDOING = 6
FIRST, SECOND = 2, 3
"""Sequences of what is asked after a submission."""


class ApprovalStoreMaker(Protocol):
    """Makes a store with limits of its own."""

    def __call__(self, looked_at: int = ..., page_bytes: int = ...) -> ApprovalStore:
        """Makes a store that looks at so many requests a page, and gives so many bytes of payloads."""
        ...


def asked(sequence: int, step: str = "pay", payload: bytes = b"request") -> JournalRow:
    """Makes the row of a request that waits."""
    header = f"asked {step}".encode()
    return JournalRow(sequence, EventKind.APPROVAL_REQUESTED, step, 0, 1_700, header, payload, "shop.v1.Order")


def happened(kind: EventKind, sequence: int, step: str = "pay") -> JournalRow:
    """Makes the row of something else."""
    return JournalRow(sequence, kind, step, 0, 1_700, b"header")


def going_on(key: RunKey, *rows: JournalRow, state: int = RUNNING) -> RunEntry:
    """Makes the entry of a run that goes on with `rows`."""
    return RunEntry(key, 1, rows, state, 1_700_000_000_000_005, None)


async def everything(store: ApprovalStore, limit: int, run_id: UUID | None = None) -> list[ApprovalPage]:
    """Follows pages to the last."""
    pages: list[ApprovalPage] = []
    after: ApprovalPosition | None = None
    while not pages or after is not None:
        pages.append(await store.list_approvals("shop", run_id, after, limit))
        after = pages[-1].after
        assert len(pages) < 100
    return pages


def steps(pages: list[ApprovalPage]) -> list[tuple[UUID, str]]:
    """Names what pages list."""
    return [(row.key.run_id, row.event.step) for page in pages for row in page.rows]


class ApprovalStoreConformance:
    """What waits, in what order, and how much a page looks at."""

    async def test_a_request_that_waits_is_listed_with_what_its_run_tells(
        self, stores: Stores, approvals: ApprovalStoreMaker
    ) -> None:
        me, key, other = await replica(stores), run_key(), run_key("bank")
        await states(stores, me, submission(key, workflow="refund"), submission(other))
        await states(stores, me, going_on(key, asked(FIRST)), going_on(other, asked(FIRST, "rob")))
        store = approvals()
        page = await store.list_approvals("shop", None, None, 10)
        assert page.after is None
        (row,) = page.rows
        assert (row.key, row.workflow, row.principal) == (key, "refund", "ada")
        assert row.event == asked(FIRST)
        assert row.position == ApprovalPosition(key.run_id, FIRST)
        assert [each.event.step for each in (await store.list_approvals("bank", None, None, 10)).rows] == ["rob"]
        assert (await store.list_approvals("empty", None, None, 10)).rows == []
        assert (await store.list_approvals("bank", key.run_id, None, 10)).rows == []

    @pytest.mark.parametrize(
        "kind",
        [
            EventKind.APPROVAL_DECIDED,
            EventKind.STEP_SUCCEEDED,
            EventKind.STEP_FAILED,
            EventKind.STEP_SKIPPED,
            EventKind.STEP_CANCELLED,
        ],
    )
    async def test_what_no_longer_waits_is_not_listed(
        self, stores: Stores, approvals: ApprovalStoreMaker, kind: EventKind
    ) -> None:
        me, key = await replica(stores), run_key()
        await states(stores, me, submission(key))
        rows = (asked(FIRST), asked(SECOND, "ship"), happened(kind, 4), happened(EventKind.STEP_FAILED, 5, "other"))
        await states(stores, me, going_on(key, *rows))
        assert steps(await everything(approvals(), 10)) == [(key.run_id, "ship")]
        await states(stores, me, going_on(key, asked(6)))
        assert steps(await everything(approvals(), 10)) == [(key.run_id, "ship"), (key.run_id, "pay")]

    async def test_nothing_of_a_run_that_ends_is_listed(self, stores: Stores, approvals: ApprovalStoreMaker) -> None:
        me, ended, waiting = await replica(stores), run_key(), run_key()
        await states(stores, me, submission(ended), submission(waiting))
        await states(stores, me, going_on(ended, asked(FIRST)), going_on(waiting, asked(FIRST)))
        await states(stores, me, ending(ended, SECOND))
        assert steps(await everything(approvals(), 10)) == [(waiting.run_id, "pay")]

    async def test_pages_go_on_where_the_last_ended(self, stores: Stores, approvals: ApprovalStoreMaker) -> None:
        me, keys = await replica(stores), [run_key() for _ in range(4)]
        await states(stores, me, *(submission(key) for key in keys))
        for key in reversed(keys):
            await states(stores, me, going_on(key, asked(FIRST, "b"), asked(SECOND, "a")))
        expected = [(key.run_id, step) for key in keys for step in ("b", "a")]
        for limit in (1, 3, 8, 100):
            pages = await everything(approvals(), limit)
            assert steps(pages) == expected
            assert all(len(page.rows) == limit for page in pages[:-1])
        assert steps(await everything(approvals(), 1, keys[2].run_id)) == expected[4:6]

    async def test_a_page_looks_at_a_bounded_number(self, stores: Stores, approvals: ApprovalStoreMaker) -> None:
        me, key = await replica(stores), run_key()
        await states(stores, me, submission(key))
        decided = [
            row
            for number in range(FIRST, 22, 2)
            for row in (asked(number, f"s{number}"), happened(EventKind.APPROVAL_DECIDED, number + 1, f"s{number}"))
        ]
        await states(stores, me, going_on(key, *decided, asked(22, "last")))
        pages = await everything(approvals(looked_at=4), 10)
        assert [len(page.rows) for page in pages] == [0, 0, 1]
        assert steps(pages) == [(key.run_id, "last")]

    async def test_a_page_ends_before_its_payloads_are_large(
        self, stores: Stores, approvals: ApprovalStoreMaker
    ) -> None:
        me, key, sizes = await replica(stores), run_key(), (10, 60, 30, 200, 10, 90, 10, 0)
        await states(stores, me, submission(key))
        rows = [asked(number, f"s{number}", bytes(size)) for number, size in enumerate(sizes, FIRST)]
        await states(stores, me, going_on(key, *rows))
        pages = await everything(approvals(page_bytes=100), 10)
        assert [[len(row.event.payload or b"") for row in page.rows] for page in pages] == [
            [10, 60, 30],
            [200],
            [10, 90],
            [10, 0],
        ]
