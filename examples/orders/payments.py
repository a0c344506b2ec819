"""The shop's payments: cards and invoices, some refused, with an acquirer that does not always answer. No Baton."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from dataclasses import dataclass
from datetime import UTC

import grpc
from shop.v1 import payments_pb2, payments_pb2_grpc

from examples.orders.answers import AnswersByKey, KeyReusedError
from examples.serving import Context, call_metadata, parser, refuse, serve

SERVICES = ("shop.v1.PaymentsService",)
DECLINING_PREFIX = "tok_declined_"
"""Cards whose token starts so are declined; the rest of the token is the decline code."""

INVOICE_LIMIT_MINOR_UNITS = 150_000
LONGEST_PAYMENT_SECONDS = 60 * 86_400


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a charge is refused for good."""

    reason: str
    message: str
    decline_code: str


@dataclass(frozen=True, slots=True)
class Outages:
    """When the acquirer does not answer: a share of all calls, told by the seed, the order and the number of the call.

    The order in which calls arrive does not matter, so the same orders always meet the same outages.
    """

    share: float
    seed: int

    def strikes(self, order_id: str, call: int) -> bool:
        """Tells whether the order's call with this number, from 1, gets no answer."""
        return _fraction(f"{self.seed}/{order_id}/{call}") < self.share

    def after_charging(self, order_id: str, call: int) -> bool:
        """Tells whether such a call has taken the money all the same."""
        return _fraction(f"{self.seed}/{order_id}/{call}/charged") < 0.5


def _fraction(text: str) -> float:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def refusal_of(request: payments_pb2.ChargeRequest) -> Refusal | None:
    """Returns why this charge is refused; None where it is not."""
    if request.method.HasField("card"):
        card = request.method.card
        if card.token.startswith(DECLINING_PREFIX):
            code = card.token.removeprefix(DECLINING_PREFIX)
            return Refusal(
                "CARD_DECLINED",
                f"the card ending in {card.last_digits} was declined",
                code,
            )
        when = request.charge_time.ToDatetime(tzinfo=UTC)
        if card.expiry_month < when.year * 100 + when.month:
            return Refusal(
                "CARD_DECLINED",
                f"the card ending in {card.last_digits} has expired",
                "expired_card",
            )
        return None
    if request.amount.minor_units > INVOICE_LIMIT_MINOR_UNITS:
        return Refusal("INVOICE_REFUSED", "the amount is above the limit of invoices", "over_limit")
    if request.method.invoice.payment_period.ToSeconds() > LONGEST_PAYMENT_SECONDS:
        return Refusal("INVOICE_REFUSED", "the payment period is too long", "period_too_long")
    return None


class PaymentsServicer(payments_pb2_grpc.PaymentsServiceServicer):
    """PaymentsService over accounts in memory."""

    def __init__(self, outages: Outages, latency_seconds: float = 0.0) -> None:
        self._outages = outages
        self._latency_seconds = latency_seconds
        self._charges: AnswersByKey[payments_pb2.ChargeResponse] = AnswersByKey()
        self._payments: dict[str, payments_pb2.Payment] = {}
        self._payments_of_order: dict[str, list[payments_pb2.Payment]] = {}
        self._calls: Counter[str] = Counter()

    async def Charge(self, request: payments_pb2.ChargeRequest, context: Context) -> payments_pb2.ChargeResponse:
        """Charges an order, once for each idempotency key."""
        key = call_metadata(context).get("idempotency-key", "")
        await asyncio.sleep(self._latency_seconds)
        self._calls[request.order_id] += 1
        call = self._calls[request.order_id]
        outage = self._outages.strikes(request.order_id, call)
        if outage and not self._outages.after_charging(request.order_id, call):
            await refuse(
                context,
                grpc.StatusCode.UNAVAILABLE,
                "ACQUIRER_DOWN",
                "the acquirer does not answer",
            )
        try:
            answer = self._charges.find(key, request)
        except KeyReusedError:
            await refuse(
                context,
                grpc.StatusCode.INVALID_ARGUMENT,
                "KEY_REUSED",
                "the key came with another request",
            )
        if answer is None:
            refusal = refusal_of(request)
            if refusal is not None:
                await refuse(
                    context,
                    grpc.StatusCode.FAILED_PRECONDITION,
                    refusal.reason,
                    refusal.message,
                    decline_code=refusal.decline_code,
                )
            answer = self._charges.keep(key, request, payments_pb2.ChargeResponse(payment=self._take(request)))
        if outage:
            await refuse(
                context,
                grpc.StatusCode.UNAVAILABLE,
                "ACQUIRER_DOWN",
                "the acquirer's answer was lost",
            )
        return answer

    def _take(self, request: payments_pb2.ChargeRequest) -> payments_pb2.Payment:
        payment = payments_pb2.Payment(
            payment_id=f"pay-{len(self._payments) + 1:06d}",
            order_id=request.order_id,
            amount=request.amount,
            state=payments_pb2.PAYMENT_STATE_CAPTURED,
            due_time=request.charge_time,
        )
        if request.method.HasField("invoice"):
            payment.state = payments_pb2.PAYMENT_STATE_INVOICED
            payment.due_time.seconds += request.method.invoice.payment_period.seconds
        self._payments[payment.payment_id] = payment
        self._payments_of_order.setdefault(request.order_id, []).append(payment)
        return payment

    async def GetPayment(
        self, request: payments_pb2.GetPaymentRequest, context: Context
    ) -> payments_pb2.GetPaymentResponse:
        """Reads one payment."""
        call_metadata(context)
        payment = self._payments.get(request.payment_id)
        if payment is None:
            await refuse(context, grpc.StatusCode.NOT_FOUND, "UNKNOWN_PAYMENT", "no such payment")
        return payments_pb2.GetPaymentResponse(payment=payment)

    async def ListPayments(
        self, request: payments_pb2.ListPaymentsRequest, context: Context
    ) -> payments_pb2.ListPaymentsResponse:
        """Reads the payments of one order."""
        call_metadata(context)
        return payments_pb2.ListPaymentsResponse(payments=self._payments_of_order.get(request.order_id, ()))


def main() -> None:
    """Serves the payments."""
    command_line = parser(__doc__)
    command_line.add_argument(
        "--unavailable-share",
        type=float,
        default=0.15,
        help="share of calls without an answer",
    )
    command_line.add_argument("--seed", type=int, default=7, help="which calls these are")
    command_line.add_argument(
        "--latency",
        type=float,
        default=0.005,
        help="seconds that a call takes at least",
    )
    options = command_line.parse_args()
    servicer = PaymentsServicer(Outages(options.unavailable_share, options.seed), options.latency)
    serve(
        options,
        SERVICES,
        lambda server: payments_pb2_grpc.add_PaymentsServiceServicer_to_server(servicer, server),
    )


if __name__ == "__main__":
    main()
