"""Words to other replicas: given until they are answered, within bounds; a replica that is silent holds nobody up."""

from __future__ import annotations

import asyncio
from collections import Counter
from uuid import UUID

import pytest

from orchestrator.engine import words
from orchestrator.engine.replica_ports import ReplicaUnreachable
from orchestrator.engine.words import TRIES, Words

ONE, TWO = UUID(int=1), UUID(int=2)


class Hints:
    """Replicas that a test plays: each answers once it was told so often."""

    def __init__(self, deaf: dict[UUID, int] | None = None) -> None:
        self.deaf = deaf or {}
        self.told: Counter[UUID] = Counter()
        self.held: dict[UUID, asyncio.Event] = {}

    async def runs_left(self, replica_id: UUID, address: str) -> None:
        self.told[replica_id] += 1
        if replica_id in self.held:
            await self.held[replica_id].wait()
        if self.told[replica_id] <= self.deaf.get(replica_id, 0):
            raise ReplicaUnreachable

    def admits(self, replica_id: UUID, token: str) -> bool:
        return False


def to(hints: Hints) -> Words:
    made = Words(hints)
    made.others = {ONE: "one:1", TWO: "two:1"}
    return made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "PAUSE_SECONDS", 0.0)


async def test_a_word_is_given_until_it_is_answered() -> None:
    hints = Hints(deaf={ONE: TRIES - 1})
    given = to(hints)
    given.give_all()
    assert await given.settle()
    assert hints.told == {ONE: TRIES, TWO: 1}


async def test_who_never_answers_is_told_a_few_times() -> None:
    hints = Hints(deaf={ONE: 1_000})
    given = to(hints)
    given.give((ONE,))
    assert not await given.settle()
    assert hints.told == {ONE: TRIES}


async def test_what_comes_while_a_word_is_under_way_is_told_after_it_once() -> None:
    hints = Hints()
    hints.held[ONE] = asyncio.Event()
    given = to(hints)
    given.give((ONE,))
    await asyncio.sleep(0)
    for _ in range(5):
        given.give((ONE,))
    assert not await given.settle(0.0), "it has not answered yet"
    hints.held[ONE].set()
    assert await given.settle()
    assert hints.told == {ONE: 2}


async def test_nobody_is_told_who_is_not_there() -> None:
    hints = Hints()
    given = to(hints)
    given.give((UUID(int=3),))
    assert not await given.settle()
    assert not hints.told


async def test_words_end_with_who_gives_them() -> None:
    hints = Hints()
    hints.held[ONE] = asyncio.Event()
    given = to(hints)
    given.give((ONE,))
    await asyncio.sleep(0)
    await given.close()
    assert not await given.settle()
