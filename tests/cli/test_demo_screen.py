"""What the demo's tables look like on a narrow screen."""

from __future__ import annotations

import pytest

from examples.demo.screen import Screen


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """A screen of 80 columns."""
    for name, value in (("COLUMNS", "80"), ("LINES", "24"), ("FORCE_COLOR", "1"), ("TERM", "dumb")):
        monkeypatch.setenv(name, value)
    return Screen()


def test_a_long_table_is_cut_and_says_so(screen: Screen, capsys: pytest.CaptureFixture[str]) -> None:
    screen.table(("document", "# words"), [(f"docs/{number}.md", "7") for number in range(47)], limit=12)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 14
    assert "docs/11.md" in lines[-2]
    assert "… and 35 more" in lines[-1]


def test_what_fits_is_shown_whole(screen: Screen, capsys: pytest.CaptureFixture[str]) -> None:
    screen.table(("document", "# words"), [("docs/1.md", "7")], limit=1)
    assert "more" not in capsys.readouterr().out


def test_names_and_numbers_are_never_broken(screen: Screen, capsys: pytest.CaptureFixture[str]) -> None:
    assert screen.width == 80
    screen.table(("document", "# sections", "# words"), [("docs/" + "long-" * 20, "4", "1234")] * 2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all("1234" in line for line in lines[1:])
