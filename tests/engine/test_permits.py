"""The book of permits: nothing beyond a limit is given, nothing lies idle while somebody waits, and turns are taken."""

from __future__ import annotations

import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.engine import permits
from orchestrator.engine.limit_ports import LimitRow, Rate
from orchestrator.engine.permits import Ask, Kind, PermitBook, Pool


class Place:
    """A book with a clock and timers of its own."""

    def __init__(self, **limits: int | Rate | tuple[int, Rate]) -> None:
        self.now = 1_000_000_000
        self.timers: list[tuple[int, Any]] = []
        self.rows: dict[str, LimitRow] = {}
        for name, bound in limits.items():
            self.set(name, bound)
        timers: Any = SimpleNamespace(at=self._at)
        self.book = PermitBook(self.rows.get, lambda: self.now, timers)
        self.given: list[tuple[str, int]] = []

    def set(self, name: str, bound: int | Rate | tuple[int, Rate]) -> None:
        most, rate = bound if isinstance(bound, tuple) else (bound, None) if isinstance(bound, int) else (0, bound)
        self.rows[name] = LimitRow("default", name, 4, "", most, rate, 0, 0)

    def asks(self, name: str, *kinds: Kind, wanted: int = 1, priority: int = 0, resumes: bool = False) -> Ask:
        """Asks under a name that `given` then shows."""
        ask = Ask(kinds, priority, lambda kind: self.given.append((name, kind)), resumes=resumes)
        self.given += [(name, kind) for kind in self.book.ask(ask, wanted)]
        return ask

    def pass_time(self, microseconds: int) -> None:
        end = self.now + microseconds
        while due := [timer for timer in self.timers if timer[0] <= end]:
            first = min(due, key=lambda timer: timer[0])
            self.timers.remove(first)
            self.now = max(self.now, first[0])
            first[1]()
        self.now = end

    def _at(self, due_time: int, fire: Any) -> Any:
        entry = (due_time, fire)
        self.timers.append(entry)
        return SimpleNamespace(cancel=lambda: entry in self.timers and self.timers.remove(entry))


def kind(*names: str) -> Kind:
    return tuple(Pool(*name.split("/")) for name in names)


def test_asks_take_turns_and_higher_priorities_come_first() -> None:
    place = Place(few=1)
    place.asks("held", kind("few"))
    place.asks("a", kind("few"), wanted=2)
    place.asks("b", kind("few"), wanted=2)
    place.asks("high", kind("few"), wanted=1, priority=5)
    for _ in range(6):
        place.book.give_back(kind("few"), 1)
    assert [name for name, _ in place.given] == ["held", "high", "a", "b", "a", "b"]


def test_a_permit_is_given_in_all_its_pools_or_in_none() -> None:
    place = Place(few=2, one=1)
    place.asks("a", kind("few", "one"))
    place.asks("b", kind("few", "one"))
    place.asks("c", kind("few"), wanted=2)
    # What b lacks is not held for it meanwhile: c has what it can use.
    assert place.given == [("a", 0), ("c", 0)]
    place.book.give_back(kind("few"), 1)
    assert place.given[2:] == [("c", 0)]
    place.book.give_back(kind("few", "one"), 1)
    assert place.given[3:] == [("b", 0)]


def test_another_kind_will_do() -> None:
    place = Place(first=1, second=1)
    place.asks("a", kind("first"), kind("second"), wanted=3)
    assert place.given == [("a", 0), ("a", 1)]
    place.book.give_back(kind("second"), 1)
    assert place.given[2:] == [("a", 1)]


def test_keys_are_apart() -> None:
    place = Place(customers=1)
    for name in ("anna", "bert", "anna"):
        place.asks(name, kind(f"customers/{name}"))
    assert [name for name, _ in place.given] == ["anna", "bert"]
    assert place.book.use_of("customers") == {"anna": (1, 1), "bert": (1, 0)}


def test_what_waits_is_told_what_is_before_it() -> None:
    place = Place(few=1)
    place.asks("held", kind("few"))
    place.asks("a", kind("few"), wanted=7)
    ask = place.asks("b", kind("few"))
    refusal = place.book.refusal(ask)
    assert (refusal.message, refusal.ahead) == ("the limit few has 1 of 1 calls in flight", 7)


def test_a_rate_gives_its_burst_and_then_one_at_a_time() -> None:
    place = Place(slow=Rate(10, 1_000_000, 3))
    place.asks("a", kind("slow"), wanted=8)
    assert len(place.given) == 3
    for count in (4, 5, 6):
        place.pass_time(100_001)
        assert len(place.given) == count
    refusal = place.book.refusal(place.asks("b", kind("slow")))
    assert refusal.until_time is not None
    assert place.now < refusal.until_time <= place.now + 300_000


def test_a_permit_that_was_not_used_does_not_count_in_the_rate() -> None:
    place = Place(slow=Rate(1, 60_000_000, 1))
    place.asks("a", kind("slow"))
    place.asks("b", kind("slow"))
    assert len(place.given) == 1
    place.book.give_back(kind("slow"), 1, unused=1)
    assert place.given[1:] == [("b", 0)]


def test_a_rate_that_was_used_up_is_there_again_in_its_time_where_the_clock_is_set_back() -> None:
    place = Place(slow=Rate(10, 1_000_000, 3))
    place.asks("held", kind("slow"), wanted=3)
    place.now -= 600_000_000
    place.asks("a", kind("slow"))
    assert len(place.given) == 3
    place.pass_time(100_001)
    assert place.given[3:] == [("a", 0)]


def test_who_waits_for_a_rate_is_not_passed_over_where_its_timer_is_late() -> None:
    place = Place(slow=Rate(1, 1_000_000, 1), customers=5)
    place.asks("held", kind("slow"))
    place.asks("high", kind("slow"), priority=5)
    place.now += 1_500_000  # The permit is due, and the timer has yet to fire.
    assert place.book.take_now([kind("slow")]) is None
    place.asks("low", kind("slow"))
    place.asks("of a customer", kind("customers/anna", "slow"))
    assert [name for name, _ in place.given] == ["held"]
    place.pass_time(2)
    assert [name for name, _ in place.given] == ["held", "high"]
    place.book.give_back(kind("slow"), 1, unused=1)
    assert [name for name, _ in place.given] == ["held", "high", "low"]
    place.pass_time(1_000_001)
    assert [name for name, _ in place.given[3:]] == ["of a customer"]


def test_a_new_home_begins_with_empty_buckets_but_for_new_limits() -> None:
    place = Place(slow=Rate(1, 1_000_000, 2))
    place.book.empty_since = place.now
    place.asks("a", kind("slow"), wanted=2)
    assert place.given == []
    place.pass_time(1_000_002)
    assert len(place.given) == 1
    place.rows["new"] = LimitRow("default", "new", 4, "", 0, Rate(1, 1_000_000, 2), 0, place.now)
    place.asks("b", kind("new"), wanted=2)
    assert place.given[1:] == [("b", 0), ("b", 0)]


def test_what_is_held_beyond_a_limit_is_waited_for() -> None:
    place = Place(few=2)
    place.book.restore(iter([(kind("few"), 3)]))
    place.asks("a", kind("few"))
    place.book.give_back(kind("few"), 1)
    assert place.given == []
    place.book.give_back(kind("few"), 1)
    assert place.given == [("a", 0)]


def test_a_paused_book_gives_nothing_and_then_all_it_can() -> None:
    place = Place(few=2)
    place.book.paused = "because"
    ask = place.asks("a", kind("few"), wanted=3)
    place.asks("high", kind("few"), priority=1)
    assert place.given == []
    assert place.book.refusal(ask).message == "because"
    place.book.paused = ""
    place.book.restore(iter(()))
    place.book.look_again()
    assert place.given == [("high", 0), ("a", 0)]


def test_there_is_a_most_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permits, "MAX_POOLS", 3)
    place = Place(customers=1)
    asks = [place.asks(str(number), kind(f"customers/{number}")) for number in range(5)]
    assert [name for name, _ in place.given] == ["0", "1", "2"]
    assert "3 keys" in place.book.refusal(asks[3]).message
    place.book.give_back(kind("customers/1"), 1)
    place.pass_time(1_000_000)
    assert [name for name, _ in place.given] == ["0", "1", "2", "3"]
    place.book.ask(asks[4], 0)
    place.book.give_back(kind("customers/0"), 1)
    place.pass_time(1_000_000)
    assert len(place.given) == 4


def test_a_permit_costs_the_same_however_many_wait() -> None:
    costs = []
    for waiting in (10, 10_000):
        place = Place(few=1)
        looks = 0

        def counted(name: str, place: Place = place) -> LimitRow | None:
            nonlocal looks
            looks += 1
            return place.rows.get(name)

        place.asks("held", kind("few"))
        for _ in range(waiting):
            place.asks("a", kind("few"), wanted=2)
        place.book._limit_of = counted
        for _ in range(10):
            place.book.give_back(kind("few"), 1)
        costs.append(looks)
    assert costs[0] == costs[1]


@pytest.mark.parametrize("seed", range(100))
def test_nothing_is_exceeded_and_nothing_lies_idle(seed: int) -> None:
    draw = random.Random(seed)
    bounds = {name: draw.randint(1, 3) for name in "abc"}
    place = Place(**bounds)
    held: list[Kind] = []
    open_asks: dict[int, Ask] = {}

    def asked(number: int, kinds: list[Kind]) -> Ask:
        return Ask(kinds, draw.randint(-1, 1), lambda given: held.append(kinds[given]))

    for number in range(300):
        action = draw.randint(0, 5)
        if action <= 1:
            kinds = [kind(*draw.sample("abc", draw.randint(1, 3))) for _ in range(draw.randint(1, 2))]
            ask = open_asks[number] = asked(number, kinds)
            held += [kinds[given] for given in place.book.ask(ask, draw.randint(1, 4))]
        elif action <= 4 and held:
            place.book.give_back(held.pop(draw.randrange(len(held))), 1)
        elif open_asks and draw.random() < 0.3:
            place.book.ask(open_asks.pop(draw.choice(list(open_asks))), 0)
        used = Counter(pool.limit for one in held for pool in one)
        assert all(used[name] <= most for name, most in bounds.items())
        for ask in open_asks.values():
            if ask.wanted:
                for one in ask.kinds:
                    assert any(used[pool.limit] >= bounds[pool.limit] for pool in one), "a permit lies idle"
    for ask in open_asks.values():
        place.book.ask(ask, 0)
    while held:
        place.book.give_back(held.pop(), 1)
    assert all(place.book.use_of(name) == {} for name in bounds)


def test_calls_that_go_on_come_before_their_equals_and_use_up_no_rate() -> None:
    place = Place(few=(1, Rate(1, 3_600_000_000, 1)))
    place.asks("held", kind("few"))
    place.asks("new", kind("few"))
    place.asks("urgent", kind("few"), priority=5)
    place.asks("first", kind("few"), resumes=True)
    second = place.asks("second", kind("few"), resumes=True)
    assert place.book.refusal(second).ahead == 2
    for _ in range(3):
        # The rate holds up the others, for an hour, whatever their priority.
        place.book.give_back(kind("few"), 1)
    assert [name for name, _ in place.given] == ["held", "first", "second"]
    place.pass_time(3_600_000_001)
    assert [name for name, _ in place.given[3:]] == ["urgent"]
    place.asks("third", kind("few"), resumes=True)
    place.set("few", 1)
    place.book.give_back(kind("few"), 1)
    place.book.give_back(kind("few"), 1)
    assert [name for name, _ in place.given[4:]] == ["third", "new"]


def test_a_rate_that_is_raised_holds_nobody_up_for_the_time_of_the_old_one() -> None:
    place = Place(few=Rate(1, 3_600_000_000, 1))
    place.asks("held", kind("few"))
    waiting = place.asks("waiting", kind("few"))
    assert place.book.refusal(waiting).until_time == place.now + 3_600_000_000
    place.set("few", Rate(100, 1_000_000, 1))
    place.book.look_again()
    assert place.book.refusal(waiting).until_time == place.now + 10_000
    place.pass_time(10_001)
    assert [name for name, _ in place.given] == ["held", "waiting"]


def test_what_is_given_is_taken_back_from_who_thinks_better_of_it_as_it_hears_of_the_first() -> None:
    place = Place(few=2)
    heard: list[int] = []

    def granted(which: int) -> None:
        heard.append(which)
        place.book.forget(ask)

    place.asks("held", kind("few"), wanted=2)
    ask = Ask([kind("few")], 0, granted)
    place.book.ask(ask, 2)
    place.set("few", 4)
    place.book.look_again()
    assert heard == [0], "the second was given too, and was not told yet"
    # Whoever heard of one gives that back by itself.
    assert place.book.use_of("few") == {"": (3, 0)}


@pytest.mark.parametrize("asks", [False, True])
def test_no_permit_leaks_where_the_thousandth_key_is_met(asks: bool) -> None:
    place = Place(everything=10, of_method=10, customers=2)
    assert place.book.take_now([kind("everything")]) == 0
    for number in range(2_100):
        # Nobody uses the limit of the method meanwhile: it may be dropped, but not while a permit of it is looked at.
        customer = kind("everything", "of_method", f"customers/{number}")
        if asks:
            place.asks(str(number), customer)
            assert place.given[number:] == [(str(number), 0)]
        else:
            assert place.book.take_now([customer]) == 0
        place.book.give_back(customer, 1)
    place.book.give_back(kind("everything"), 1)
    assert all(place.book.use_of(name) == {} for name in place.rows)
    assert len(place.book._pools) < 1_000


@pytest.mark.parametrize("seed", range(60))
def test_nobody_is_forgotten_where_as_many_keys_are_in_use_as_may_be(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    monkeypatch.setattr(permits, "MAX_POOLS", draw.choice([6, 8, 10]))
    place = Place(everything=draw.randint(2, 5), a=3, customers=draw.randint(1, 2), tenants=2)
    held: list[Kind] = []
    open_asks: dict[int, Ask] = {}

    def drawn_kind() -> Kind:
        names = [name for name in ("everything", "a") if draw.random() < 0.5]
        if draw.random() < 0.7:
            names.append(f"customers/{draw.randint(0, 9)}")
        if draw.random() < 0.3 or not names:
            names.append(f"tenants/{draw.randint(0, 9)}")
        return kind(*names)

    def asked(kinds: list[Kind]) -> Ask:
        return Ask(kinds, draw.randint(-1, 1), lambda given: held.append(kinds[given]))

    for number in range(200):
        action = draw.randint(0, 6)
        kinds = [drawn_kind() for _ in range(draw.randint(1, 2))]
        if action == 0:
            taken = place.book.take_now(kinds)
            held += [kinds[taken]] if taken is not None else []
        elif action == 1:
            ask = open_asks[number] = asked(kinds)
            held += [kinds[given] for given in place.book.ask(ask, draw.randint(1, 3))]
        elif action <= 5 and held:
            place.book.give_back(held.pop(draw.randrange(len(held))), 1)
        elif open_asks and draw.random() < 0.4:
            place.book.ask(open_asks.pop(draw.choice(list(open_asks))), 0)
        if draw.random() < 0.1:
            place.pass_time(600_000)
        used = Counter(pool for one in held for pool in one)
        assert all(count <= place.rows[pool.limit].max_in_flight for pool, count in used.items())
    while held:
        place.book.give_back(held.pop(), 1)
        place.pass_time(600_000)
    assert not any(ask.wanted for ask in open_asks.values())
    assert all(place.book.use_of(name) == {} for name in place.rows)
