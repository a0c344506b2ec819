"""The documents of the demo: this repository's own texts, read by agents."""

from __future__ import annotations

import asyncio

from baton import Client, RunNotSucceeded
from documents.v1 import documents_pb2

from examples.documents.document import repository_documents

AT_ONCE = 4

LONGEST_RUN_SECONDS = 60.0


async def read_all(client: Client) -> tuple[list[documents_pb2.Report], list[str]]:
    """Reads every document; returns the reports in the order of their names, and what went wrong."""
    places = asyncio.Semaphore(AT_ONCE)
    wrong: list[str] = []

    async def one(document: documents_pb2.Document) -> documents_pb2.Report | None:
        async with places:
            run = await client.submit("read-document", document, output=documents_pb2.Report)
            try:
                return await run.result(LONGEST_RUN_SECONDS)
            except RunNotSucceeded as error:
                wrong.append(f"{document.name}: run {run.id} {error.code} {error.reason}")
                return None

    reports = await asyncio.gather(*map(one, repository_documents()))
    return [report for report in reports if report is not None], wrong
