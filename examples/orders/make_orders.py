"""Makes `catalogue.json` and `orders.jsonl`, the same at every run: `python -m examples.orders.make_orders`.

The stock suffices for every order that can be met at all, so how an order ends does not depend on the order of arrival.
"""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path

from google.protobuf import json_format
from shop.v1 import order_pb2

HERE = Path(__file__).parent
SEED = 20261122
ORDER_COUNT = 300
FIRST_ORDER_TIME = 1_794_787_200
WAREHOUSES = ("HAM", "LEJ", "VIE")
DISCONTINUED = ("KETTLE-COPPER", "TEAPOT-RAKU")
SCARCE = {"TEA-GYOKURO-50": 18}
DECLINE_CODES = ("insufficient_funds", "stolen_card", "do_not_honour")

PRODUCTS = (
    ("TEA-ASSAM-250", 1150, 275),
    ("TEA-ASSAM-1000", 3990, 1050),
    ("TEA-DARJEELING-100", 1490, 120),
    ("TEA-DARJEELING-250", 3290, 275),
    ("TEA-SENCHA-100", 1690, 120),
    ("TEA-GYOKURO-50", 3450, 70),
    ("TEA-OOLONG-100", 1890, 120),
    ("TEA-EARLGREY-250", 1090, 275),
    ("TEA-ROOIBOS-500", 1290, 530),
    ("TEA-MINT-200", 790, 220),
    ("COFFEE-YIRGA-500", 1590, 520),
    ("COFFEE-HUILA-500", 1490, 520),
    ("COFFEE-SUMATRA-1000", 2690, 1030),
    ("COFFEE-DECAF-250", 990, 265),
    ("CUP-PORCELAIN", 1250, 310),
    ("CUP-STONEWARE", 1650, 390),
    ("MUG-ENAMEL", 1390, 280),
    ("TEAPOT-GLASS-1L", 3490, 820),
    ("TEAPOT-IRON-1L", 6990, 2100),
    ("TEAPOT-RAKU", 11900, 1300),
    ("KETTLE-COPPER", 14900, 1900),
    ("KETTLE-GOOSENECK", 7990, 1200),
    ("FILTER-PAPER-100", 490, 160),
    ("FILTER-STEEL", 1990, 90),
    ("GRINDER-HAND", 8990, 740),
    ("SCALE-BREW", 4990, 480),
    ("SUGAR-ROCK-500", 590, 520),
    ("BISCUIT-OAT-200", 390, 230),
    ("BISCUIT-ALMOND-200", 590, 230),
    ("TIN-SQUARE-250", 690, 140),
)

NAMES = (
    "Amélie Laurent",
    "Björn Lindqvist",
    "Chiara Rossi",
    "Daan de Vries",
    "Elif Yıldız",
    "Fatima El Amrani",
    "Greta Hoffmann",
    "Hanna Nowak",
    "Ignacio Vega",
    "Jana Krüger",
    "Kofi Mensah",
    "Lukas Steiner",
    "Mei Tanaka",
    "Noah Weber",
    "Olena Kovalenko",
    "Pascal Dubois",
    "Quirin Bauer",
    "Rosa Jiménez",
    "Søren Holm",
    "Thandi Dlamini",
    "Ulla Virtanen",
    "Viktor Horváth",
    "Wanda Zielińska",
    "Yara Haddad",
)

CITIES = (
    ("DE", "20095", "Hamburg"),
    ("DE", "04109", "Leipzig"),
    ("DE", "80331", "München"),
    ("DE", "50667", "Köln"),
    ("AT", "1010", "Wien"),
    ("AT", "8010", "Graz"),
    ("NL", "1012 AB", "Amsterdam"),
    ("FR", "69001", "Lyon"),
    ("BE", "2000", "Antwerpen"),
    ("CH", "8001", "Zürich"),
    ("IT", "40121", "Bologna"),
    ("PL", "31-001", "Kraków"),
)
PLAIN_LETTERS = str.maketrans({"ø": "o", "ı": "i"})
STREETS = ("Lindenweg", "Hafenstraße", "Rue des Tilleuls", "Kerkstraat", "Via Verdi", "Am Markt", "Gartenallee")


def main() -> None:
    """Writes both files beside this module."""
    for name, text in files().items():
        (HERE / name).write_text(text, "utf-8")


def files() -> dict[str, str]:
    """Returns the text of both files by name."""
    chance = random.Random(SEED)
    catalogue = {"products": [product(chance, *entry) for entry in PRODUCTS]}
    orders = [
        json_format.MessageToDict(order(chance, number), preserving_proto_field_name=True)
        for number in range(1, ORDER_COUNT + 1)
    ]
    for each in orders:
        # The order of a proto map's entries changes from process to process.
        each["notes"] = dict(sorted(each["notes"].items()))
    return {
        "catalogue.json": json.dumps(catalogue, indent=1) + "\n",
        "orders.jsonl": "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in orders),
    }


def product(chance: random.Random, sku: str, price_cents: int, weight_grams: int) -> dict[str, object]:
    """Returns one product with its lots."""
    if sku in DISCONTINUED:
        pieces = [0]
    elif sku in SCARCE:
        pieces = [SCARCE[sku]]
    else:
        pieces = [chance.randrange(20, 80), chance.randrange(200, 500), 20_000]
    lots = [
        {
            "lot_id": f"{sku}-L{number}",
            "warehouse": WAREHOUSES[(number + len(sku)) % len(WAREHOUSES)],
            "arrival_date": f"2026-{6 + number:02d}-{chance.randrange(1, 28):02d}",
            "pieces": count,
        }
        for number, count in enumerate(pieces, start=1)
    ]
    return {"sku": sku, "price_cents": price_cents, "weight_grams": weight_grams, "lots": lots}


def order(chance: random.Random, number: int) -> order_pb2.OrderInput:
    """Returns one order; a few can not be met, and a few can not be paid."""
    name = chance.choice(NAMES)
    country_code, postal_code, city = chance.choice(CITIES)
    letters = unicodedata.normalize("NFKD", name.lower().translate(PLAIN_LETTERS)).encode("ascii", "ignore").decode()
    mailbox = letters.replace(" ", ".")
    made = order_pb2.OrderInput(
        order_id=f"SO-2026-{number:06d}",
        customer=order_pb2.Customer(
            customer_id=f"C{10_000 + NAMES.index(name)}", name=name, email=f"{mailbox}@mail.example"
        ),
        lines=order_lines(chance),
        payment=payment(chance),
        ship_to=order_pb2.Address(
            recipient=name,
            street_lines=[f"{chance.choice(STREETS)} {chance.randrange(1, 120)}"],
            postal_code=postal_code,
            city=city,
            country_code=country_code,
        ),
        speed=order_pb2.DELIVERY_SPEED_EXPRESS if chance.random() < 0.3 else order_pb2.DELIVERY_SPEED_STANDARD,
        notes={"channel": chance.choice(("web", "web", "app", "phone"))},
    )
    made.place_time.seconds = FIRST_ORDER_TIME + number * 290 + chance.randrange(240)
    if chance.random() < 0.1:
        made.notes["gift_message"] = "Enjoy it with somebody you like."
    return made


def order_lines(chance: random.Random) -> list[order_pb2.OrderLine]:
    """Returns the lines of one order; about one order in fifteen asks for what is not there."""
    ordinary = [sku for sku, _, _ in PRODUCTS if sku not in DISCONTINUED and sku not in SCARCE]
    lines = [
        order_pb2.OrderLine(sku=sku, quantity=chance.choice((1, 1, 1, 2, 2, 3, 6)))
        for sku in chance.sample(ordinary, chance.choice((1, 1, 2, 2, 3, 4)))
    ]
    trouble = chance.random()
    if trouble < 0.04:
        lines.append(order_pb2.OrderLine(sku=chance.choice(DISCONTINUED), quantity=1))
    elif trouble < 0.07:
        lines.append(order_pb2.OrderLine(sku="TEA-GYOKURO-50", quantity=chance.randrange(24, 60)))
    elif trouble < 0.1:
        lines.append(order_pb2.OrderLine(sku="CUP-PORCELAIN", quantity=chance.randrange(60, 140)))
    return lines


def payment(chance: random.Random) -> order_pb2.PaymentMethod:
    """Returns one way to pay; about one card in ten is declined."""
    made = order_pb2.PaymentMethod()
    if chance.random() < 0.15:
        made.invoice.purchase_order = f"PO-{chance.randrange(1000, 9999)}"
        made.invoice.payment_period.seconds = 86_400 * chance.choice((14, 30, 30, 60))
        return made
    made.card.last_digits = f"{chance.randrange(10_000):04d}"
    made.card.expiry_month = chance.choice((202612, 202706, 202803, 202911))
    trouble = chance.random()
    if trouble < 0.09:
        made.card.token = f"tok_declined_{chance.choice(DECLINE_CODES)}"
    else:
        made.card.token = f"tok_{chance.getrandbits(64):016x}"
        if trouble < 0.12:
            made.card.expiry_month = 202605
    return made


if __name__ == "__main__":
    main()
