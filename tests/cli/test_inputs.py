"""What a run is given on the command line: fields, files and standard input, and what is wrong with them."""

from __future__ import annotations

from typing import Any

import pytest
from baton.cli.inputs import build_message
from baton.cli.outcomes import CommandFailed, ExitCode
from baton.cli.types import Types
from baton.v1 import limit_pb2
from google.protobuf import timestamp_pb2

LIMIT = limit_pb2.Limit.DESCRIPTOR.full_name


async def _fault(document: Any, *settings: str, kind: str = LIMIT) -> CommandFailed:
    with pytest.raises(CommandFailed) as told:
        await build_message(kind, document, settings, Types("127.0.0.1:1"))
    return told.value


async def test_fields_come_last() -> None:
    made = await build_message(LIMIT, {"name": "a", "target": "b"}, ["name=c"], Types("127.0.0.1:1"))
    assert made == limit_pb2.Limit(name="c", target="b")


async def test_a_field_that_is_not_utf_8_is_told() -> None:
    assert (await _fault(None, "name=a\udcffb")).message == "-i name: it is not UTF-8"


async def test_a_field_is_given_once() -> None:
    told = await _fault(None, "name=Ada", "target=x", "name=Bob")
    assert (told.message, told.code) == ("-i name: it is given twice", ExitCode.USAGE)


@pytest.mark.parametrize("document", [[], [{"name": "a"}], "", 0, False])
async def test_an_input_is_an_object(document: Any) -> None:
    told = await _fault(document)
    assert (told.message, told.code) == (f"the input is not a {LIMIT}: it is no JSON object", ExitCode.USAGE)


async def test_messages_of_protobuf_itself_have_their_own_forms() -> None:
    kind = timestamp_pb2.Timestamp.DESCRIPTOR.full_name
    made = await build_message(kind, "1970-01-01T00:00:05Z", (), Types("127.0.0.1:1"))
    assert made == timestamp_pb2.Timestamp(seconds=5)
    assert "no JSON object" in (await _fault("1970-01-01T00:00:05Z", "seconds=6", kind=kind)).message
