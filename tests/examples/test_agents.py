"""The agents of the example: what each does for itself. What they come to together is shown by the demo."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from answers.v1 import answers_pb2, answers_pb2_grpc

from examples.agents import tools
from examples.agents.planner import topics
from examples.agents.publisher import Publisher

NO_CONTEXT = cast(Any, None)


def test_a_question_is_broken_down_into_what_says_something() -> None:
    assert topics("How do leases, epochs and leases protect a run?") == ["leases", "epochs", "run"]
    assert topics("What is it?") == []


async def test_passages_are_real_and_say_what_was_asked_for() -> None:
    answer = await tools.Search().Search(answers_pb2.SearchRequest(query="lease"), NO_CONTEXT)
    assert 0 < len(answer.passages) <= tools.PASSAGES
    for passage in answer.passages:
        lines = (tools.ROOT / passage.file).read_text("utf-8").splitlines()
        assert "lease" in passage.text.lower()
        assert " ".join(lines[passage.line - 1].split()) in passage.text


async def test_the_program_is_written_and_run() -> None:
    answer = await tools.Coding().Count(answers_pb2.CountRequest(word="Journal"), NO_CONTEXT)
    assert answer.names >= answer.files > 0
    assert "ast.parse" in answer.program
    hostile = await tools.Coding().Count(answers_pb2.CountRequest(word="'); import os; ('"), NO_CONTEXT)
    assert (hostile.names, hostile.files) == (0, 0), "a word is data of the program, never a part of it"


async def test_a_reviewer_is_content_in_the_end() -> None:
    passage = answers_pb2.Passage(file="a.md", line=1, text="a **fence** " + "word " * 200, query="lease")
    request = answers_pb2.WriteRequest(question="Why?", passages=[passage])
    draft = (await tools.Writing().Write(request, NO_CONTEXT)).draft
    first = await tools.Review().Review(answers_pb2.ReviewRequest(question="Why?", draft=draft), NO_CONTEXT)
    assert (first.content, list(first.missing)) == (False, ["fence"])
    request.passages.add(file="b.md", line=2, text="more of it", query="fence")
    draft = (await tools.Writing().Write(request, NO_CONTEXT)).draft
    second = await tools.Review().Review(answers_pb2.ReviewRequest(question="Why?", draft=draft), NO_CONTEXT)
    assert (second.content, list(second.remarks)) == (True, [])


async def test_a_report_lies_in_its_folder_or_nowhere(tmp_path: Path) -> None:
    server = grpc.aio.server()
    answers_pb2_grpc.add_PublishingServiceServicer_to_server(Publisher(tmp_path / "reports"), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = answers_pb2_grpc.PublishingServiceStub(channel)
        for _ in range(2):
            answer = await stub.Publish(answers_pb2.PublishRequest(file="a.md", report="text"))
            assert await asyncio.to_thread(Path(answer.file).read_text) == "text"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Publish(answers_pb2.PublishRequest(file="../a.md", report="text"))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await server.stop(None)
    assert not (tmp_path / "a.md").exists()
