"""Files and standard input that cannot be read as text, or as what they are to be."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from baton.cli.outcomes import CommandFailed
from baton.cli.reading import read_json, read_lines
from baton.cli.yaml_documents import read_documents

MARK = b"\xef\xbb\xbf"
"""A byte order mark, as some editors put before UTF-8."""

Give = Callable[[bytes, str], str]


@pytest.fixture(params=["file", "-"])
def give(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Give:
    """Makes bytes the content of a file, or of standard input as Python opens it; returns the name to read."""

    def give_(held: bytes, ending: str) -> str:
        if request.param == "-":
            stdin = io.TextIOWrapper(io.BytesIO(held), encoding="utf-8", errors="surrogateescape")
            monkeypatch.setattr(sys, "stdin", stdin)
            return "-"
        path = tmp_path / f"given.{ending}"
        path.write_bytes(held)
        return str(path)

    return give_


@pytest.mark.parametrize(
    "read", [read_json, lambda name: list(read_lines(name)), lambda name: list(read_documents(name))]
)
def test_what_is_not_utf_8_is_told(give: Give, read: Callable[[str], object]) -> None:
    name = give(b'{"name": "\xe4"}', "json")
    with pytest.raises(CommandFailed) as told:
        read(name)
    assert told.value.message == f"cannot read {'standard input' if name == '-' else name}: it is not UTF-8"


def test_a_byte_order_mark_is_no_part_of_the_text(give: Give) -> None:
    assert read_json(give(MARK + b'{"name": "Ada"}', "json")) == {"name": "Ada"}
    assert list(read_lines(give(MARK + b"{}\n\n[]\n", "jsonl"))) == [(1, "{}\n"), (3, "[]\n")]
    (document,) = read_documents(give(MARK + b"name: a\n", "yaml"))
    assert document.node.value[0][0].value == "name"


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 10_000, "a number has too many digits"),
        (b'{"a": 1,\n}', "2: not one JSON document"),
    ],
)
def test_what_is_no_json_is_told_with_its_place(give: Give, held: bytes, said: str) -> None:
    name = give(held, "json")
    with pytest.raises(CommandFailed) as told:
        read_json(name)
    place = "standard input" if name == "-" else name
    assert told.value.message.startswith(f"{place}:")
    assert said in told.value.message


def test_a_closed_standard_input_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(CommandFailed, match="standard input is closed"):
        read_json("-")


def test_a_field_given_as_a_file_is_told_how_to_give_it() -> None:
    with pytest.raises(CommandFailed) as told:
        read_json("question=How do leases work?")
    assert told.value.cure == "did you mean -i 'question=How do leases work?'?"
