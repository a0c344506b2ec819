"""`baton limit`: limits are applied, shown and deleted, and refused with their cure."""

from __future__ import annotations

import pytest

from .conftest import Command


async def test_a_limit_is_applied_listed_shown_and_removed(command: Command) -> None:
    # Of a key, which no other test names: the server is shared.
    applied = await command("limit", "apply", "cli-customers", "--key", "--max-in-flight", "2", "--rate", "30/1m")
    assert applied.code == 0, applied.error
    line = next(line for line in (await command("limit", "ls")).out.splitlines() if line.startswith("cli-customers"))
    assert line.split() == ["cli-customers", "KEY", "2", "30", "in", "60", "s"]
    shown = await command("limit", "get", "cli-customers", "-o", "json")
    assert shown.json["limit"]["rate"] == {"count": 30, "per": "60s", "burst": 30}
    assert "0 in flight, 0 waiting" in (await command("limit", "get", "cli-customers")).out
    assert (await command("limit", "rm", "cli-customers")).code == 0
    gone = await command("limit", "get", "cli-customers")
    assert gone.code == 6
    assert "baton limit ls" in gone.error


async def test_the_former_names_are_understood_and_told_no_more(command: Command) -> None:
    applied = await command("limit", "apply", "cli-former", "--key", "--max-in-flight", "2")
    assert applied.code == 0, applied.error
    assert "0 in flight" in (await command("limit", "show", "cli-former")).out
    assert (await command("limit", "delete", "cli-former")).code == 0
    told = (await command("limit", "--help")).out.split()
    assert {"get", "rm"} <= set(told)
    assert {"show", "delete"} & set(told) == set()


@pytest.mark.parametrize(
    ("options", "cure"),
    [
        (("--key",), "give --max-in-flight, --rate or both"),
        (("--rate", "5/s"), "give one of --method, --worker, --namespace and --key"),
        (("--key", "--rate", "fast"), "give one such as 100/s or 5/1m"),
        (("--key", "--max-in-flight", "1", "--burst", "2"), "--burst goes with --rate"),
    ],
)
async def test_a_wrong_limit_is_refused_with_its_cure(command: Command, options: tuple[str, ...], cure: str) -> None:
    refused = await command("limit", "apply", "wrong", *options)
    assert refused.code == 2
    assert cure in " ".join(refused.error.replace("│", " ").split())
