"""The client of Restate: one call a run on its HTTP ingress, over connections that are kept.

By aiohttp, which costs a client less than the library that comes with the SDK.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp
import uvloop

from benchmarks.load import One, serve

WAIT_SECONDS = 60.0
_OFTEN_SECONDS = 0.005


class RestateClient:
    """Registers the service with the server, and calls it."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def register(self, admin: str, service: str) -> None:
        """Tells the server where the service is."""
        await self._until(f"http://{admin}/deployments", {"uri": f"http://{service}", "force": True}, (200, 201))

    async def connect(self, ingress: str) -> None:
        """Takes the server, and completes a first run as soon as there is one to complete it."""
        self._url = f"http://{ingress}/Bench/run"
        await self._until(self._url, "chain-1", (200,))

    def one(self, shape: str) -> One:
        """Returns what submits one run and awaits its end in the same call."""

        async def one() -> None:
            async with self._session.post(self._url, json=shape) as answer:
                text = await answer.text()
                if answer.status != 200:
                    raise RuntimeError(f"a run of {shape} did not succeed: {text}")

        return one

    async def _until(self, url: str, body: Any, wanted: tuple[int, ...]) -> None:
        end = time.monotonic() + WAIT_SECONDS
        said = "nothing"
        while time.monotonic() < end:
            try:
                async with self._session.post(url, json=body) as answer:
                    said = await answer.text()
                    if answer.status in wanted:
                        return
            except aiohttp.ClientError as error:
                said = type(error).__name__
            await asyncio.sleep(_OFTEN_SECONDS)
        raise RuntimeError(f"{url} did not answer as it should: {said}")


async def _main() -> None:
    await serve(RestateClient())


if __name__ == "__main__":
    uvloop.run(_main())
