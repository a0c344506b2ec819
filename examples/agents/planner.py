"""The planner: an ordinary async function, durable because all that it asks of others are steps of its run.

`python -m examples.agents.planner` serves it; BATON_ADDRESS says where Baton is.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable

import grpc
from answers.v1 import answers_pb2, answers_pb2_grpc
from baton import Worker, delegate

from examples.agents.serving import serve
from examples.serving import Context, refuse

MOST_ROUNDS = 5
MOST_QUERIES = 6

_COMMON_WORDS = """
a an and are as at be by do does for from has have how in is it its of on or our protect so that the them there they
this to was what when where which who why will with
"""
_COMMON = frozenset(_COMMON_WORDS.split())

worker = Worker("planner", suspend_after=1.0)


@worker.service
class Planner(answers_pb2_grpc.PlannerServiceServicer):
    """PlannerService. It keeps nothing: called again after a crash, it gets the answers that it has had already."""

    async def Answer(self, request: answers_pb2.AnswerRequest, context: Context) -> answers_pb2.AnswerResponse:
        """Asks, writes and has it reviewed until the reviewer is content."""
        queries = topics(request.question)
        passages: list[answers_pb2.Passage] = []
        figures: list[answers_pb2.CountResponse] = []
        answer = answers_pb2.AnswerResponse()
        remarks: list[str] = []
        while answer.rounds < MOST_ROUNDS and not answer.content:
            found, counted = await asyncio.gather(self._search(queries), self._count(queries))
            passages += found
            figures += counted
            answer.searches += len(queries)
            if not passages:
                await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "NOTHING_FOUND", "no file speaks of that")
            material = answers_pb2.WriteRequest(
                question=request.question, passages=passages, figures=figures, remarks=remarks
            )
            draft = (await delegate(answers_pb2_grpc.WritingServiceServicer.Write, material)).draft
            review = await delegate(
                answers_pb2_grpc.ReviewServiceServicer.Review,
                answers_pb2.ReviewRequest(question=request.question, draft=draft),
            )
            answer.rounds += 1
            answer.report, answer.content = draft, review.content
            queries, remarks = list(review.missing)[:MOST_QUERIES], list(review.remarks)
        return answer

    async def _search(self, queries: Iterable[str]) -> list[answers_pb2.Passage]:
        answers = await asyncio.gather(
            *(
                delegate(answers_pb2_grpc.SearchServiceServicer.Search, answers_pb2.SearchRequest(query=query))
                for query in queries
            )
        )
        return [passage for answer in answers for passage in answer.passages]

    async def _count(self, queries: Iterable[str]) -> list[answers_pb2.CountResponse]:
        return await asyncio.gather(
            *(
                delegate(answers_pb2_grpc.CodingServiceServicer.Count, answers_pb2.CountRequest(word=query))
                for query in queries
            )
        )


def topics(question: str) -> list[str]:
    """Breaks a question down into what is to be searched for: its words that say something, without repeats."""
    words = (word.lower() for word in re.findall(r"[A-Za-z][A-Za-z-]{2,}", question))
    return list(dict.fromkeys(word for word in words if word not in _COMMON))[:MOST_QUERIES]


if __name__ == "__main__":
    serve(worker)
