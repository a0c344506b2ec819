"""The shop's two carriers, a fast one and one that goes everywhere. A plain gRPC server, no Baton.

Each can be served alone, so that the fast one can be taken away while the other works on.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import grpc
from shop.v1 import shipping_pb2, shipping_pb2_grpc

from examples.orders.answers import AnswersByKey, KeyReusedError
from examples.serving import Context, call_metadata, parser, refuse, serve

EXPRESS_SERVICE = "shop.v1.ExpressCarrierService"
STANDARD_SERVICE = "shop.v1.StandardCarrierService"
PIECES_IN_A_PARCEL = 12
HEAVY_GRAMS = 20_000
DAY_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class Carrier:
    """A carrier: days on the way by country, and the days to countries that are not named (None: not served)."""

    name: str
    prefix: str
    days_by_country: Mapping[str, int]
    days_elsewhere: int | None

    def days_to(self, country_code: str, weight_grams: int) -> int | None:
        """Returns the days on the way, one more for heavy goods; None where the carrier does not go."""
        days = self.days_by_country.get(country_code, self.days_elsewhere)
        return None if days is None else days + (weight_grams > HEAVY_GRAMS)


EXPRESS = Carrier("Swift Couriers", "SC", {"DE": 1, "AT": 1, "NL": 1, "FR": 1, "BE": 1, "CH": 2}, None)
STANDARD = Carrier("Overland Post", "OP", {"DE": 2, "AT": 3, "NL": 3, "FR": 4, "BE": 3, "CH": 5}, 8)


def tracking_number(carrier: Carrier, order_id: str) -> str:
    """Returns the carrier's prefix, eight digits told by the order, and a digit that checks them."""
    digest = hashlib.blake2b(f"{carrier.prefix}/{order_id}".encode(), digest_size=8).digest()
    digits = f"{int.from_bytes(digest, 'big') % 10**8:08d}"
    weighted = sum(int(digit) * weight for digit, weight in zip(digits, (8, 6, 4, 2, 3, 5, 9, 7), strict=True))
    check = (11 - weighted % 11) % 11 % 10
    return f"{carrier.prefix}{digits}{check}"


class CarrierServicer:
    """CreateLabel of either carrier service; both have the same messages."""

    def __init__(self, carrier: Carrier, latency_seconds: float = 0.0) -> None:
        self._carrier = carrier
        self._latency_seconds = latency_seconds
        self._labels: AnswersByKey[shipping_pb2.CreateLabelResponse] = AnswersByKey()

    async def CreateLabel(
        self, request: shipping_pb2.CreateLabelRequest, context: Context
    ) -> shipping_pb2.CreateLabelResponse:
        """Books the parcels of an order, once for each idempotency key."""
        key = call_metadata(context).get("idempotency-key", "")
        await asyncio.sleep(self._latency_seconds)
        try:
            known = self._labels.find(key, request)
        except KeyReusedError:
            await refuse(
                context,
                grpc.StatusCode.INVALID_ARGUMENT,
                "KEY_REUSED",
                "the key came with another request",
            )
        if known is not None:
            return known
        country_code = request.destination.country_code
        days = self._carrier.days_to(country_code, request.weight_grams)
        if days is None:
            await refuse(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                "DESTINATION_NOT_SERVED",
                f"{self._carrier.name} does not go to {country_code}",
                country_code=country_code,
            )
        return self._labels.keep(key, request, self._label(request, days))

    def _label(self, request: shipping_pb2.CreateLabelRequest, days: int) -> shipping_pb2.CreateLabelResponse:
        answer = shipping_pb2.CreateLabelResponse(
            tracking_number=tracking_number(self._carrier, request.order_id),
            carrier=self._carrier.name,
        )
        for warehouse, pieces in sorted(request.pieces_by_warehouse.items()):
            for parcel in range(math.ceil(pieces / PIECES_IN_A_PARCEL)):
                answer.parcels.add(
                    warehouse=warehouse,
                    number=len(answer.parcels) + 1,
                    pieces=min(PIECES_IN_A_PARCEL, pieces - parcel * PIECES_IN_A_PARCEL),
                )
        answer.transit_period.seconds = days * DAY_SECONDS
        answer.estimated_arrival_time.CopyFrom(request.ready_time)
        answer.estimated_arrival_time.seconds += days * DAY_SECONDS
        return answer


class ExpressCarrierServicer(CarrierServicer, shipping_pb2_grpc.ExpressCarrierServiceServicer):
    """ExpressCarrierService."""


class StandardCarrierServicer(CarrierServicer, shipping_pb2_grpc.StandardCarrierServiceServicer):
    """StandardCarrierService."""


def main() -> None:
    """Serves one carrier or both."""
    command_line = parser(__doc__)
    command_line.add_argument("--carrier", choices=["express", "standard", "both"], default="both")
    command_line.add_argument(
        "--latency",
        type=float,
        default=0.004,
        help="seconds that a call takes at least",
    )
    options = command_line.parse_args()
    express = options.carrier in ("express", "both")
    standard = options.carrier in ("standard", "both")

    def add(server: grpc.aio.Server) -> None:
        if express:
            servicer = ExpressCarrierServicer(EXPRESS, options.latency)
            shipping_pb2_grpc.add_ExpressCarrierServiceServicer_to_server(servicer, server)
        if standard:
            other = StandardCarrierServicer(STANDARD, options.latency)
            shipping_pb2_grpc.add_StandardCarrierServiceServicer_to_server(other, server)

    serve(options, [EXPRESS_SERVICE] * express + [STANDARD_SERVICE] * standard, add)


if __name__ == "__main__":
    main()
