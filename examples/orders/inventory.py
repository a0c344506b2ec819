"""The shop's inventory: stock lots from a catalogue file, reserved oldest first. A plain gRPC server, no Baton."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import grpc
from shop.v1 import inventory_pb2, inventory_pb2_grpc, order_pb2

from examples.orders.answers import AnswersByKey, KeyReusedError
from examples.serving import Context, call_metadata, parser, refuse, serve

SERVICES = ("shop.v1.InventoryService",)
CATALOGUE = Path(__file__).parent / "catalogue.json"


@dataclass(slots=True)
class Lot:
    """Pieces of one product that arrived together; `pieces` is what is left of them."""

    lot_id: str
    warehouse: str
    pieces: int


@dataclass(frozen=True, slots=True)
class Product:
    """A product with its lots, the oldest first."""

    sku: str
    price: order_pb2.Money
    weight_grams: int
    lots: tuple[Lot, ...]

    @property
    def pieces(self) -> int:
        """Pieces left in all lots."""
        return sum(lot.pieces for lot in self.lots)


def read_catalogue(path: Path) -> dict[str, Product]:
    """Reads the products of the shop by sku."""
    products = {}
    for entry in json.loads(path.read_text("utf-8"))["products"]:
        lots = sorted(entry["lots"], key=lambda lot: str(lot["arrival_date"]))
        products[entry["sku"]] = Product(
            sku=entry["sku"],
            price=order_pb2.Money(currency_code="EUR", minor_units=entry["price_cents"]),
            weight_grams=entry["weight_grams"],
            lots=tuple(Lot(lot["lot_id"], lot["warehouse"], lot["pieces"]) for lot in lots),
        )
    return products


class OutOfStockError(Exception):
    """A product has fewer pieces than an order asks for."""

    def __init__(self, sku: str, wanted: int, left: int) -> None:
        super().__init__(f"{wanted} of {sku} wanted, {left} left")
        self.sku = sku


class Shelves:
    """The stock, and what is reserved of it. No method awaits, so each is atomic."""

    def __init__(self, products: dict[str, Product]) -> None:
        self.products = products
        self._reserved: dict[str, list[tuple[Lot, int]]] = {}
        self._released: dict[str, int] = {}

    def reserve(self, lines: Iterable[order_pb2.OrderLine]) -> inventory_pb2.ReserveStockResponse:
        """Takes all lines, oldest lots first, or nothing. Raises KeyError for an unknown sku, and OutOfStockError."""
        wanted = Counter[str]()
        for line in lines:
            wanted[line.sku] += line.quantity
        for sku, quantity in wanted.items():
            if self.products[sku].pieces < quantity:
                raise OutOfStockError(sku, quantity, self.products[sku].pieces)
        reservation_id = f"rsv-{len(self._reserved) + 1:06d}"
        answer = inventory_pb2.ReserveStockResponse(reservation_id=reservation_id)
        answer.total.currency_code = "EUR"
        taken: list[tuple[Lot, int]] = []
        for sku, quantity in wanted.items():
            product = self.products[sku]
            for lot in product.lots:
                pieces = min(lot.pieces, quantity)
                if pieces == 0:
                    continue
                lot.pieces -= pieces
                quantity -= pieces
                taken.append((lot, pieces))
                answer.lots.add(
                    sku=sku,
                    lot_id=lot.lot_id,
                    warehouse=lot.warehouse,
                    quantity=pieces,
                    unit_price=product.price,
                )
                answer.total.minor_units += pieces * product.price.minor_units
                answer.weight_grams += pieces * product.weight_grams
                answer.pieces_by_warehouse[lot.warehouse] += pieces
        self._reserved[reservation_id] = taken
        return answer

    def release(self, reservation_id: str) -> int:
        """Puts a reservation back and returns its pieces; again, changes nothing. Raises KeyError for an unknown id."""
        taken = self._reserved[reservation_id]
        if reservation_id not in self._released:
            for lot, pieces in taken:
                lot.pieces += pieces
            self._released[reservation_id] = sum(pieces for _, pieces in taken)
        return self._released[reservation_id]


class InventoryServicer(inventory_pb2_grpc.InventoryServiceServicer):
    """InventoryService over shelves in memory."""

    def __init__(self, shelves: Shelves, latency_seconds: float = 0.0) -> None:
        self._shelves = shelves
        self._latency_seconds = latency_seconds
        self._reservations: AnswersByKey[inventory_pb2.ReserveStockResponse] = AnswersByKey()

    async def ReserveStock(
        self, request: inventory_pb2.ReserveStockRequest, context: Context
    ) -> inventory_pb2.ReserveStockResponse:
        """Reserves the lines of an order, once for each idempotency key."""
        key = call_metadata(context).get("idempotency-key", "")
        await asyncio.sleep(self._latency_seconds)
        try:
            known = self._reservations.find(key, request)
            if known is not None:
                return known
            return self._reservations.keep(key, request, self._shelves.reserve(request.lines))
        except KeyReusedError:
            await refuse(
                context,
                grpc.StatusCode.INVALID_ARGUMENT,
                "KEY_REUSED",
                "the key came with another request",
            )
        except OutOfStockError as error:
            await refuse(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                "OUT_OF_STOCK",
                str(error),
                sku=error.sku,
            )
        except KeyError as error:
            await refuse(
                context,
                grpc.StatusCode.NOT_FOUND,
                "UNKNOWN_SKU",
                f"no product {error.args[0]}",
            )

    async def ReleaseStock(
        self, request: inventory_pb2.ReleaseStockRequest, context: Context
    ) -> inventory_pb2.ReleaseStockResponse:
        """Gives a reservation back."""
        call_metadata(context)
        await asyncio.sleep(self._latency_seconds)
        try:
            pieces = self._shelves.release(request.reservation_id)
        except KeyError:
            await refuse(
                context,
                grpc.StatusCode.NOT_FOUND,
                "UNKNOWN_RESERVATION",
                "no such reservation",
            )
        return inventory_pb2.ReleaseStockResponse(released_pieces=pieces)

    async def GetStock(
        self, request: inventory_pb2.GetStockRequest, context: Context
    ) -> inventory_pb2.GetStockResponse:
        """Reads what is left."""
        call_metadata(context)
        products = self._shelves.products
        unknown = [sku for sku in request.skus if sku not in products]
        if unknown:
            await refuse(
                context,
                grpc.StatusCode.NOT_FOUND,
                "UNKNOWN_SKU",
                f"no product {unknown[0]}",
            )
        return inventory_pb2.GetStockResponse(
            pieces_by_sku={sku: products[sku].pieces for sku in request.skus or products}
        )


def main() -> None:
    """Serves the inventory."""
    command_line = parser(__doc__)
    command_line.add_argument("--catalogue", type=Path, default=CATALOGUE, help="file with products and lots")
    command_line.add_argument(
        "--latency",
        type=float,
        default=0.002,
        help="seconds that a call takes at least",
    )
    options = command_line.parse_args()
    servicer = InventoryServicer(Shelves(read_catalogue(options.catalogue)), options.latency)
    serve(
        options,
        SERVICES,
        lambda server: inventory_pb2_grpc.add_InventoryServiceServicer_to_server(servicer, server),
    )


if __name__ == "__main__":
    main()
