"""The example services as strangers see them: processes that are called over gRPC."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from documents.v1 import documents_pb2, documents_pb2_grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status
from shop.v1 import (
    inventory_pb2,
    inventory_pb2_grpc,
    notifications_pb2,
    notifications_pb2_grpc,
    order_pb2,
    payments_pb2,
    payments_pb2_grpc,
    shipping_pb2,
    shipping_pb2_grpc,
)

ROOT = Path(__file__).parents[2]
TIMEOUT_SECONDS = 20.0
CARD = order_pb2.PaymentMethod(
    card=order_pb2.PaymentMethod.Card(token="tok_1", last_digits="4242", expiry_month=209912)
)

WORKERS = {
    "examples.orders.inventory": {"shop.v1.InventoryService"},
    "examples.orders.payments": {"shop.v1.PaymentsService"},
    "examples.orders.shipping": {"shop.v1.ExpressCarrierService", "shop.v1.StandardCarrierService"},
    "examples.orders.notifications": {"shop.v1.NotificationService"},
    "examples.documents.worker": {
        "documents.v1.SplitterService",
        "documents.v1.ExtractorService",
        "documents.v1.ScorerService",
        "documents.v1.SummariserService",
        "documents.v1.ReporterService",
    },
}


@dataclass(slots=True)
class Worker:
    """A worker's process and a channel to it."""

    process: asyncio.subprocess.Process
    channel: grpc.aio.Channel

    async def stop(self) -> tuple[int, str]:
        """Asks the process to end; returns its exit code and what it logged."""
        self.process.send_signal(signal.SIGTERM)
        _, log = await asyncio.wait_for(self.process.communicate(), TIMEOUT_SECONDS)
        assert self.process.returncode is not None
        return self.process.returncode, log.decode()


@asynccontextmanager
async def started(module: str, *options: str) -> AsyncIterator[Worker]:
    """Starts `python -m module` on a free port, and ends it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, "--port", "0", *options, cwd=ROOT, stdout=-1, stderr=-1
    )
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), TIMEOUT_SECONDS)).decode()
        assert line.startswith("listening on 127.0.0.1:")
        async with grpc.aio.insecure_channel(line.split()[-1]) as channel:
            yield Worker(process, channel)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def reason_of(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    """Returns the ErrorInfo of an error."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    info = error_details_pb2.ErrorInfo()
    assert status is not None
    assert status.details[0].Unpack(info)
    return info


def key(text: str) -> tuple[tuple[str, str], ...]:
    """Returns the metadata that carries an idempotency key."""
    return (("idempotency-key", text),)


@pytest.mark.parametrize("module", WORKERS)
async def test_reflection_and_health_tell_the_services_and_sigterm_ends_the_process(module: str) -> None:
    """Each worker can be registered by its address alone."""
    async with started(module) as worker:
        reflect = worker.channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        answers = [answer async for answer in reflect(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))]
        listed = {service.name for service in answers[0].list_services_response.service}
        assert listed >= WORKERS[module]
        check = worker.channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            health_pb2.HealthCheckRequest.SerializeToString,
            health_pb2.HealthCheckResponse.FromString,
        )
        for service in WORKERS[module]:
            state = await check(health_pb2.HealthCheckRequest(service=service))
            assert state.status == health_pb2.HealthCheckResponse.SERVING
        code, _ = await worker.stop()
        assert code == 0


async def test_inventory_reserves_once_for_each_key_from_the_oldest_lot() -> None:
    """A redelivered call answers the same and takes nothing more."""
    request = inventory_pb2.ReserveStockRequest(
        order_id="o-1", lines=[order_pb2.OrderLine(sku="CUP-STONEWARE", quantity=150)]
    )
    async with started("examples.orders.inventory") as worker:
        stub = inventory_pb2_grpc.InventoryServiceStub(worker.channel)
        before = (await stub.GetStock(inventory_pb2.GetStockRequest(skus=["CUP-STONEWARE"]))).pieces_by_sku
        first = await stub.ReserveStock(request, metadata=key("run-1/reserve"))
        assert await stub.ReserveStock(request, metadata=key("run-1/reserve")) == first
        after = (await stub.GetStock(inventory_pb2.GetStockRequest(skus=["CUP-STONEWARE"]))).pieces_by_sku
        assert before["CUP-STONEWARE"] - after["CUP-STONEWARE"] == 150
        assert [lot.lot_id for lot in first.lots] == ["CUP-STONEWARE-L1", "CUP-STONEWARE-L2"]
        assert sum(lot.quantity for lot in first.lots) == sum(first.pieces_by_warehouse.values()) == 150
        assert first.total.minor_units == 150 * 1650
        other = await stub.ReserveStock(request, metadata=key("run-2/reserve"))
        assert other.reservation_id != first.reservation_id
        for _ in range(2):
            released = await stub.ReleaseStock(inventory_pb2.ReleaseStockRequest(reservation_id=first.reservation_id))
            assert released.released_pieces == 150
        end = (await stub.GetStock(inventory_pb2.GetStockRequest(skus=["CUP-STONEWARE"]))).pieces_by_sku
        assert before["CUP-STONEWARE"] - end["CUP-STONEWARE"] == 150


async def test_inventory_takes_all_lines_or_none() -> None:
    """An order that cannot be met leaves the shelves as they were."""
    request = inventory_pb2.ReserveStockRequest(
        order_id="o-1",
        lines=[
            order_pb2.OrderLine(sku="CUP-PORCELAIN", quantity=2),
            order_pb2.OrderLine(sku="TEAPOT-RAKU", quantity=1),
        ],
    )
    async with started("examples.orders.inventory") as worker:
        stub = inventory_pb2_grpc.InventoryServiceStub(worker.channel)
        before = await stub.GetStock(inventory_pb2.GetStockRequest())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ReserveStock(request, metadata=key("k"))
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert reason_of(caught.value).reason == "OUT_OF_STOCK"
        assert reason_of(caught.value).metadata["sku"] == "TEAPOT-RAKU"
        assert await stub.GetStock(inventory_pb2.GetStockRequest()) == before
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetStock(inventory_pb2.GetStockRequest(skus=["NO-SUCH"]))
        assert reason_of(caught.value).reason == "UNKNOWN_SKU"


def charge(order_id: str, method: order_pb2.PaymentMethod = CARD) -> payments_pb2.ChargeRequest:
    """Returns a charge of 12.34."""
    request = payments_pb2.ChargeRequest(
        order_id=order_id, amount=order_pb2.Money(currency_code="EUR", minor_units=1234), method=method
    )
    request.charge_time.FromJsonString("2026-11-22T10:00:00Z")
    return request


async def test_payments_charge_once_although_answers_are_lost() -> None:
    """Calling again with the same key until an answer comes takes the money once."""
    outages = []
    async with started("examples.orders.payments", "--unavailable-share", "0.5", "--latency", "0") as worker:
        stub = payments_pb2_grpc.PaymentsServiceStub(worker.channel)
        for number in range(20):
            order_id = f"o-{number}"
            for _ in range(40):
                try:
                    answer = await stub.Charge(charge(order_id), metadata=key(order_id))
                    break
                except grpc.aio.AioRpcError as error:
                    outages.append(error.code())
            payments = await stub.ListPayments(payments_pb2.ListPaymentsRequest(order_id=order_id))
            assert [payment.payment_id for payment in payments.payments] == [answer.payment.payment_id]
    assert len(outages) > 5
    assert set(outages) == {grpc.StatusCode.UNAVAILABLE}


async def test_payments_refuse_with_a_reason() -> None:
    """Declined and expired cards, long credit, and a key that comes with another request."""
    declined = order_pb2.PaymentMethod()
    declined.card.token = "tok_declined_insufficient_funds"
    expired = order_pb2.PaymentMethod()
    expired.card.expiry_month = 202610
    invoice = order_pb2.PaymentMethod()
    invoice.invoice.payment_period.seconds = 90 * 86_400
    async with started("examples.orders.payments", "--unavailable-share", "0") as worker:
        stub = payments_pb2_grpc.PaymentsServiceStub(worker.channel)
        for method, reason, code in (
            (declined, "CARD_DECLINED", "insufficient_funds"),
            (expired, "CARD_DECLINED", "expired_card"),
            (invoice, "INVOICE_REFUSED", "period_too_long"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Charge(charge("o-1", method), metadata=key(code))
            assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
            assert reason_of(caught.value).reason == reason
            assert reason_of(caught.value).metadata["decline_code"] == code
        await stub.Charge(charge("o-2"), metadata=key("k"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Charge(charge("o-3"), metadata=key("k"))
        assert reason_of(caught.value).reason == "KEY_REUSED"


async def test_a_call_logs_who_made_it() -> None:
    """Run, step and attempt of a call can be found in the worker's log."""
    metadata = (("baton-run", "run-7"), ("baton-step", "charge"), ("baton-attempt", "2"), *key("run-7/charge/1"))
    async with started("examples.orders.payments", "--unavailable-share", "0", "--log-level", "debug") as worker:
        await payments_pb2_grpc.PaymentsServiceStub(worker.channel).Charge(charge("o-1"), metadata=metadata)
        _, log = await worker.stop()
    assert "baton-run=run-7 baton-step=charge baton-attempt=2 idempotency-key=run-7/charge/1" in log


async def test_carriers_stand_in_for_each_other() -> None:
    """The fast carrier does not go everywhere; the other one does, and answers with the same message."""
    request = shipping_pb2.CreateLabelRequest(
        order_id="o-1",
        destination=order_pb2.Address(country_code="IT"),
        weight_grams=900,
        pieces_by_warehouse={"HAM": 13, "VIE": 1},
    )
    request.ready_time.FromJsonString("2026-11-22T10:00:00Z")
    async with started("examples.orders.shipping") as worker:
        express = shipping_pb2_grpc.ExpressCarrierServiceStub(worker.channel)
        standard = shipping_pb2_grpc.StandardCarrierServiceStub(worker.channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await express.CreateLabel(request, metadata=key("k"))
        assert reason_of(caught.value).reason == "DESTINATION_NOT_SERVED"
        label = await standard.CreateLabel(request, metadata=key("k"))
        assert [(parcel.warehouse, parcel.pieces) for parcel in label.parcels] == [("HAM", 12), ("HAM", 1), ("VIE", 1)]
        assert label.estimated_arrival_time.ToJsonString() == "2026-11-30T10:00:00Z"
        request.destination.country_code = "DE"
        fast = await express.CreateLabel(request, metadata=key("k-2"))
        assert fast.transit_period.ToSeconds() < label.transit_period.ToSeconds()
    async with started("examples.orders.shipping", "--carrier", "standard") as worker:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await shipping_pb2_grpc.ExpressCarrierServiceStub(worker.channel).CreateLabel(request)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_notifications_are_sent_once_and_need_their_parameters() -> None:
    """A text names what it lacks."""
    request = notifications_pb2.SendNotificationRequest(
        recipient=order_pb2.Customer(name="Mei"), template=notifications_pb2.NOTIFICATION_TEMPLATE_SHIPPED
    )
    request.parameters["order_id"] = "o-1"
    async with started("examples.orders.notifications") as worker:
        stub = notifications_pb2_grpc.NotificationServiceStub(worker.channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.SendNotification(request, metadata=key("k"))
        assert reason_of(caught.value).metadata["parameter"] == "tracking_number"
        request.parameters["tracking_number"] = "SC1"
        sent = await stub.SendNotification(request, metadata=key("k"))
        assert sent.text == "Dear Mei, Your order o-1 is on its way: SC1."
        assert await stub.SendNotification(request, metadata=key("k")) == sent


async def report_on(channel: grpc.aio.Channel, name: str, text: str) -> documents_pb2.Report:
    """Calls the agents one after the other, as the workflow does."""
    document = documents_pb2.Document(name=name, text=text)
    split = await documents_pb2_grpc.SplitterServiceStub(channel).SplitDocument(
        documents_pb2.SplitDocumentRequest(document=document, section_limit=1500)
    )
    facts = await documents_pb2_grpc.ExtractorServiceStub(channel).ExtractFacts(
        documents_pb2.ExtractFactsRequest(sections=split.sections, term_limit=8)
    )
    scores = await documents_pb2_grpc.ScorerServiceStub(channel).ScoreSections(
        documents_pb2.ScoreSectionsRequest(sections=split.sections)
    )
    summary = await documents_pb2_grpc.SummariserServiceStub(channel).SummariseDocument(
        documents_pb2.SummariseDocumentRequest(
            sections=split.sections, terms=facts.terms, scores=scores.scores, sentence_limit=3
        )
    )
    composed = await documents_pb2_grpc.ReporterServiceStub(channel).ComposeReport(
        documents_pb2.ComposeReportRequest(
            document_name=name,
            outline=split.outline,
            facts=facts,
            readability=scores.overall,
            summary=summary.sentences,
            section_count=len(split.sections),
        )
    )
    return composed.report


async def test_agents_report_on_a_real_document() -> None:
    """The proto comments of this repository make a report, the same each time."""
    name = "protos/baton/v1/workflow.proto"
    text = (ROOT / name).read_text("utf-8")
    async with started("examples.documents.worker") as worker:
        report = await report_on(worker.channel, name, text)
        assert await report_on(worker.channel, name, text) == report
        assert {"step", "workflow"} <= set(report.key_terms)
        assert report.counts["headings"] >= 10
        assert report.counts["words"] > 500
        assert report.reading_period.ToSeconds() == round(report.counts["words"] * 60 / 230)
        assert "- message Workflow" in report.markdown
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await report_on(worker.channel, "empty.md", "```\ncode\n```\n")
        assert reason_of(caught.value).reason == "EMPTY_DOCUMENT"
