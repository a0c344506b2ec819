"""Work that goes on together: when one part fails, all end.

As asyncio.TaskGroup, but for this: before Python 3.13 a group swallows a cancellation that comes as one of its tasks
fails, and whoever takes that failure and goes on is waited for in vain by whoever cancelled it, such as a server that
stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


async def run_together(*parts: Coroutine[object, object, None]) -> None:
    """Runs all parts to their ends, or until one fails, which ends the others.

    Errors: a BaseExceptionGroup of what parts failed with; CancelledError whenever this is cancelled.
    """
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    errors = [error for task in tasks if not task.cancelled() and (error := task.exception()) is not None]
    if errors:
        raise BaseExceptionGroup("parts of what goes on together failed", errors)
