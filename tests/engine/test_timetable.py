"""When cron expressions fire, above all in nights in which clocks are changed."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.engine.timetable import TimesInvalid, Timetable

BERLIN = "Europe/Berlin"  # +1, in summer +2; in 2026 from 29 March 02:00 until 25 October 03:00


def micros(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1_000_000)


def after(table: Timetable, begin: str, count: int) -> list[str]:
    """The next moments, in UTC."""
    found = islice(table.times_after(micros(begin)), count)
    return [f"{datetime.fromtimestamp(time / 1_000_000, UTC):%Y-%m-%d %H:%M:%S}" for time in found]


@pytest.mark.parametrize(
    ("cron", "zone", "begin", "expected"),
    [
        ("30 2 * * *", "", "2026-03-01T02:30:00Z", ["2026-03-02 02:30:00", "2026-03-03 02:30:00"]),
        ("30 2 * * *", "", "2026-03-01T02:29:59.5Z", ["2026-03-01 02:30:00"]),
        ("30 2 * * MON-FRI", BERLIN, "2026-01-02T12:00Z", ["2026-01-05 01:30:00", "2026-01-06 01:30:00"]),
        ("*/20 * * * * *", "", "2026-03-01T00:00:50Z", ["2026-03-01 00:01:00", "2026-03-01 00:01:20"]),
        ("@monthly", "Asia/Kolkata", "2026-01-15T00:00Z", ["2026-01-31 18:30:00", "2026-02-28 18:30:00"]),
        ("0 0 L * *", "", "2028-02-01T00:00Z", ["2028-02-29 00:00:00"]),
        ("0 9 * * MON#2", "", "2026-06-01T00:00Z", ["2026-06-08 09:00:00"]),
        ("0 0 13 * FRI", "", "2026-02-01T00:00Z", ["2026-02-06 00:00:00", "2026-02-13 00:00:00"]),
    ],
)
def test_moments(cron: str, zone: str, begin: str, expected: list[str]) -> None:
    assert after(Timetable(cron, zone), begin, len(expected)) == expected


@pytest.mark.parametrize(
    ("cron", "zone", "begin", "expected"),
    [
        # 02:30 is not there on 29 March: the next moment that is there is 03:00, which is 01:00 UTC.
        (
            "30 2 * * *",
            BERLIN,
            "2026-03-28T00:00Z",
            ["2026-03-28 01:30:00", "2026-03-29 01:00:00", "2026-03-30 00:30:00"],
        ),
        # All that is not there falls on one moment, and with 03:00 itself on the same.
        ("*/15 2 * * *", BERLIN, "2026-03-29T00:00Z", ["2026-03-29 01:00:00", "2026-03-30 00:00:00"]),
        ("0 2,3 * * *", BERLIN, "2026-03-29T00:00Z", ["2026-03-29 01:00:00", "2026-03-30 00:00:00"]),
        ("15 30 2 * * *", BERLIN, "2026-03-29T00:00Z", ["2026-03-29 01:00:00", "2026-03-30 00:30:15"]),
        # 02:30 comes twice on 25 October, at 00:30 and at 01:30 UTC.
        ("30 2 * * *", BERLIN, "2026-10-24T12:00Z", ["2026-10-25 00:30:00", "2026-10-26 01:30:00"]),
        ("15 30 2 * * *", BERLIN, "2026-10-24T12:00Z", ["2026-10-25 00:30:15", "2026-10-26 01:30:15"]),
        ("30 2 * * *", BERLIN, "2026-10-25T01:15Z", ["2026-10-26 01:30:00"]),
        ("0,30 1-3 * * *", BERLIN, "2026-10-25T00:25Z", ["2026-10-25 00:30:00", "2026-10-25 02:00:00"]),
        # Every so often stays every so often.
        ("*/30 * * * *", BERLIN, "2026-03-29T00:10Z", ["2026-03-29 00:30:00", "2026-03-29 01:00:00"]),
        (
            "*/30 * * * *",
            BERLIN,
            "2026-10-25T00:10Z",
            ["2026-10-25 00:30:00", "2026-10-25 01:00:00", "2026-10-25 01:30:00", "2026-10-25 02:00:00"],
        ),
        ("0 */1 * * *", BERLIN, "2026-10-25T00:00Z", ["2026-10-25 01:00:00", "2026-10-25 02:00:00"]),
        # A change of half an hour, one at midnight, and a day that was left out.
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T00:00Z", ["2026-10-03 15:30:00"]),
        ("0 0 * * *", "Asia/Beirut", "2026-03-28T12:00Z", ["2026-03-28 22:00:00", "2026-03-29 21:00:00"]),
        ("0 12 * * *", "Pacific/Apia", "2011-12-29T23:00Z", ["2011-12-30 10:00:00", "2011-12-30 22:00:00"]),
    ],
)
def test_nights_in_which_clocks_are_changed(cron: str, zone: str, begin: str, expected: list[str]) -> None:
    assert after(Timetable(cron, zone), begin, len(expected)) == expected


def test_it_fires_from_its_start_and_before_its_end() -> None:
    table = Timetable("* * * * *", "", micros("2026-01-01T00:05Z"), micros("2026-01-01T00:08Z"))
    expected = ["2026-01-01 00:05:00", "2026-01-01 00:06:00", "2026-01-01 00:07:00"]
    assert after(table, "2025-01-01T00:00Z", 9) == expected
    assert after(table, "2026-01-01T00:06Z", 9) == expected[2:]
    late = Timetable("* * * * *", "", micros("2026-01-01T00:05:00.000001Z"))
    assert after(late, "2025-01-01T00:00Z", 1) == ["2026-01-01 00:06:00"]


def test_what_never_fires_is_told() -> None:
    with pytest.raises(TimesInvalid, match="day of month cannot be read or never comes"):
        Timetable("0 0 30 2 *")
    assert Timetable("0 0 */20 * 1L").after(micros("2026-01-01T00:00Z")) is None


def test_the_end_of_all_years_is_an_end() -> None:
    assert list(Timetable("@yearly").times_after(micros("9999-06-01T00:00Z"))) == []


@pytest.mark.parametrize(
    ("cron", "said"),
    [
        ("", "0 fields"),
        ("* * * *", "4 fields"),
        ("* * * * * * *", "7 fields"),
        ("@reboot", "1 field;"),
        ("60 * * * *", "its minute"),
        ("* 24 * * *", "its hour"),
        ("* * 0 * *", "its day of month"),
        ("* * * FOO *", "its month"),
        ("* * * * 5L/2", "cannot be read"),
        ("61 * * * * *", "its second"),
        ("5-1 * * * *", "its minute"),
        ("*/0 * * * *", "its minute"),
        ("² * * * *", "its minute"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_field(cron: str, said: str) -> None:
    with pytest.raises(TimesInvalid) as refused:
        Timetable(cron)
    assert refused.value.fault.path == "cron"
    assert said in refused.value.fault.message


@pytest.mark.parametrize("zone", ["Europe/Berlni", "../etc/passwd", "/etc/passwd", "a" * 64, "Europe", "\0", "CEST"])
def test_a_zone_that_is_none_is_refused(zone: str) -> None:
    with pytest.raises(TimesInvalid) as refused:
        Timetable("@daily", zone)
    assert refused.value.fault.path == "time_zone"


@given(
    st.sampled_from(["*/7 * * * *", "30 2 * * *", "0,59 1-3 * * *", "30 0 2 * * *", "*/15 2,3 * * *", "@hourly"]),
    st.sampled_from([BERLIN, "UTC", "Australia/Lord_Howe", "America/New_York", "Asia/Beirut"]),
    st.integers(micros("2026-01-01T00:00Z"), micros("2027-01-01T00:00Z")),
)
def test_moments_rise_and_each_follows_the_one_before(cron: str, zone: str, begin: int) -> None:
    table = Timetable(cron, zone)
    times = list(islice(table.times_after(begin), 8))
    assert [begin, *times] == sorted({begin, *times})
    for time, following in pairwise(times):
        assert table.after(time) == following
