"""Restate: the service, served by Hypercorn. A step is a journaled closure (ctx.run), its cheapest durable step."""

from __future__ import annotations

import restate

from benchmarks.works import SHAPES, TEXT

bench = restate.Service("Bench")


async def step(text: str) -> str:
    """Answers with the text that it is given."""
    return text


@bench.handler()
async def run(ctx: restate.Context, shape: str) -> str:
    """Does the stages of a shape one after the other, the steps of each side by side."""
    text = TEXT
    for width in SHAPES[shape]:
        steps = [ctx.run_typed("step", step, text=text) for _ in range(width)]
        if width > 1:
            await restate.gather(*steps)
        text = await steps[-1]
    return text


app = restate.app([bench])
