"""The orders of the demo: submits them all, with a bounded number at a time, and counts how they end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from baton import Client
from baton.v1 import run_pb2
from google.protobuf import json_format
from shop.v1 import order_pb2, payments_pb2, payments_pb2_grpc

AT_ONCE = 24
"""Orders that are under way at the same time."""

LONGEST_RUN_SECONDS = 90.0

EXPECTED = {"SHIPPED": 258, "PAYMENT_DECLINED": 24, "OUT_OF_STOCK": 18}
"""How the orders of the file end, whatever fails on the way."""


@dataclass(slots=True)
class Orders:
    """What became of the orders: `runs` by order id, `outcomes` counted, `under_way` now, `wrong` what should not be.

    `crash_time` is when the server was killed, in microseconds since the Unix epoch.
    """

    inputs: list[order_pb2.OrderInput]
    runs: dict[str, run_pb2.Run] = field(default_factory=dict)
    outputs: dict[str, order_pb2.OrderOutput] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    under_way: int = 0
    wrong: list[str] = field(default_factory=list)
    crash_time: int = 0

    @property
    def ended(self) -> int:
        """Orders whose run has ended."""
        return sum(self.outcomes.values())

    def first(self, outcome: str) -> run_pb2.Run | None:
        """A run that ended with `outcome`."""
        found = (id for id, output in self.outputs.items() if status_of(output) == outcome)
        order_id = next(found, None)
        return self.runs[order_id] if order_id is not None else None

    def shipped_by_fallback(self) -> list[run_pb2.Run]:
        """Runs whose express carrier did not answer, so that the other one shipped."""
        return [run for run in self.runs.values() if _lost_carrier(run) and not self._was_hit(run)]

    def hit_by_crash(self) -> list[run_pb2.Run]:
        """Runs that had a call out when the server died."""
        return [run for run in self.runs.values() if self._was_hit(run)]

    def retried(self) -> int:
        """Attempts that failed and were made again or elsewhere."""
        return sum(max(0, len(step.attempts) - 1) for run in self.runs.values() for step in run.steps)

    def redelivered(self) -> int:
        """Calls that were sent again because the server died while they were out."""
        return sum(max(0, attempt.deliveries - 1) for run in self.runs.values() for attempt in _attempts(run))

    def _was_hit(self, run: run_pb2.Run) -> bool:
        return any(
            attempt.start_time.ToMicroseconds() < self.crash_time < attempt.end_time.ToMicroseconds()
            for attempt in _attempts(run)
        )


def read_orders(path: Path) -> Orders:
    """Reads the orders, one in JSON on each line."""
    lines = path.read_text("utf-8").splitlines()
    return Orders([json_format.Parse(line, order_pb2.OrderInput()) for line in lines])


async def submit_all(client: Client, orders: Orders, on_change: Callable[[], None]) -> None:
    """Submits every order and waits for the end of each; a lost server is waited for."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(order: order_pb2.OrderInput) -> None:
        async with places:
            orders.under_way += 1
            try:
                # The request_id makes the submission safe to repeat, also when the answer to the first was lost.
                run = await client.submit(
                    "fulfil-order",
                    order,
                    output=order_pb2.OrderOutput,
                    request_id=order.order_id,
                    attributes={"country": order.ship_to.country_code.lower()},
                )
                _record(orders, order.order_id, await run.wait(LONGEST_RUN_SECONDS))
            finally:
                orders.under_way -= 1
        on_change()

    async with asyncio.TaskGroup() as group:
        for order in orders.inputs:
            group.create_task(one(order))


def _record(orders: Orders, order_id: str, run: run_pb2.Run) -> None:
    orders.runs[order_id] = run
    output = order_pb2.OrderOutput()
    if run.state != run_pb2.RUN_STATE_SUCCEEDED or not run.output.Unpack(output):
        state = run_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_")
        orders.outcomes[state] += 1
        orders.wrong.append(f"{order_id}: run {run.run_id} {state} {run.failure.reason} {run.failure.message}")
        return
    orders.outputs[order_id] = output
    orders.outcomes[status_of(output)] += 1


def status_of(output: order_pb2.OrderOutput) -> str:
    """How an order ended, as a word."""
    return order_pb2.OrderStatus.Name(output.status).removeprefix("ORDER_STATUS_")


def _attempts(run: run_pb2.Run) -> list[run_pb2.Attempt]:
    return [attempt for step in run.steps for attempt in step.attempts]


def _lost_carrier(run: run_pb2.Run) -> bool:
    ship = next((step for step in run.steps if step.step == "ship"), None)
    if ship is None or ship.target != 1 or ship.state != run_pb2.STEP_STATE_SUCCEEDED:
        return False
    return not any(attempt.failure.reason == "DESTINATION_NOT_SERVED" for attempt in ship.attempts)


async def check_payments(orders: Orders, address: str) -> list[str]:
    """Asks the payments worker for the payments of every order; returns what is wrong with them."""
    wrong = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = payments_pb2_grpc.PaymentsServiceStub(channel)
        for order_id, output in orders.outputs.items():
            answer = await stub.ListPayments(payments_pb2.ListPaymentsRequest(order_id=order_id), timeout=10)
            found = [payment.payment_id for payment in answer.payments]
            expected = [output.payment_id] if output.payment_id else []
            if found != expected:
                wrong.append(f"{order_id}: payments {found}, but its run tells of {expected}")
    return wrong
