"""What is said of an expression that CEL refuses: where it is wrong, and the name or spelling that was meant."""

from __future__ import annotations

import pytest

from orchestrator.contracts.compile import check_workflow
from tests.contracts.corpus import check, contract_of, mirror, workflow


def fault(expression: str) -> str:
    """Returns the one message about the expression of a binding."""
    definition = mirror({"string_value": {"expression": expression}})
    definition["steps"].append({"id": "reserve", "method": "shop.v1.Mirror/Reflect"})
    (violation,) = check(definition).violations
    assert violation.reason == "INVALID_EXPRESSION"
    return violation.message


@pytest.mark.parametrize(
    ("expression", "parts"),
    [
        ("shop.v1.Currency.EURO", ["enum shop.v1.Currency has no value `EURO`", "`shop.v1.Currency.EUR`"]),
        ("input.currency == shop.v1.Currency.ZZZ", ["no value `ZZZ`", "it has CURRENCY_UNSPECIFIED, EUR, USD"]),
        ("input.strings.exists(e, shop.v1.Currency.usd == 2)", ["did you mean `shop.v1.Currency.USD`"]),
        ("input.currency == shop.v1.Curency.EUR", ["did you mean `shop.v1.Currency.EUR`"]),
        ("input.currency == shop.v1.Curency.EURO", ["did you mean `shop.v1.Currency.EUR`"]),
        ("input.currency == Currency.EUR", ["did you mean `shop.v1.Currency.EUR`"]),
        ("input.currency == EUR", ["did you mean `shop.v1.Currency.EUR`"]),
        ("input.currency == 'EUR'", ["a constant such as shop.v1.Currency.EUR"]),
        ("shop.v1.Category.Imgae{}", ["did you mean `shop.v1.Category.Image`"]),
        ("shop.v1.Category.Imgae.X == 1", ["message shop.v1.Category has no enum or message `Imgae`", "`Image`"]),
        ("shop.v1.Monye{units: 1}", ["did you mean `shop.v1.Money`"]),
        ("shop.v1.Money{unit: 1}", ["shop.v1.Money has no field `unit`; did you mean `units`"]),
        ("inptu.string_value", ["did you mean `input.string_value`"]),
        ("string_value + 'x'", ["did you mean `input.string_value`"]),
        ("reserve.output.string_value", ["did you mean `steps.reserve.output.string_value`"]),
        ("resreve.output.string_value", ["did you mean `steps.reserve.output.string_value`"]),
        ("input.strings.map(item, itme + 'x')[0]", ["no `itme`", "did you mean `item`"]),
        ("zzz", ["no `zzz`", "names start with `input`"]),
        ("sizee(input.strings)", ["no function `sizee`; did you mean `size`"]),
        ("input.strings.mapp(x, x)", ["no function `mapp`; did you mean `map`"]),
        ("math.gretest(1, 2)", ["no function `math.gretest`; did you mean `math.greatest`"]),
        ("True", ["did you mean `true`"]),
        ("input['string_value']", ["read with a dot"]),
        ("input.wrapped_int32.value + 1", ["a wrapper is its value, int or null"]),
        ("input.time.seconds + 1", ["google.protobuf.Timestamp has no fields in an expression; a path"]),
        ("'a' + 1", ["convert the other with string()"]),
    ],
)
def test_a_wrong_name_is_told_with_the_one_that_was_meant(expression: str, parts: list[str]) -> None:
    message = fault(expression)
    for part in parts:
        assert part in message
    assert "*error*" not in message


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", None),
        ("   ", "the expression is empty"),
        ("input.string_value +", "the expression cannot be read at its end: something is missing"),
        ("(input.string_value", "the expression cannot be read at its end: a `)` is missing"),
        ("a b", "the expression cannot be read at column 3 near `b`: this is not expected there"),
        ("1 +\n * 2", "the expression cannot be read at line 2, column 2 near `*`: this is not expected there"),
        ("input.bool_value and true", "the expression cannot be read at column 18 near `and`: write `&&`"),
        ("input.string_value = 'x'", "the expression cannot be read at column 20 near `=`: write `==`"),
        ("'é' + 'abc", "the expression cannot be read at column 7 near `'`: the string that starts there does not end"),
    ],
)
def test_what_cannot_be_read_is_told_without_the_parsers_words(expression: str, message: str | None) -> None:
    assert fault(expression) == (message or "the expression is empty")


@pytest.mark.parametrize("word", ["in", "true", "false", "null"])
def test_a_field_named_like_a_word_of_cel_is_written_in_backticks(word: str) -> None:
    source = f"""
    syntax = "proto3"; package k; message M {{ string {word} = 1; string other = 2; }}
    service S {{ rpc Call(M) returns (M); }}
    """

    def messages(expression: str) -> list[str]:
        request = {"other": {"expression": expression}}
        definition = {"inputType": "k.M", "steps": [{"id": "s", "method": "k.S/Call", "request": request}]}
        return [one.message for one in check_workflow(workflow(definition), [("w", contract_of(source))]).violations]

    (message,) = messages(f"input.{word} + '!'")
    assert f"column 7 near `{word}`" in message
    assert f".`{word}`" in message
    assert "path" in message
    assert messages(f"input.`{word}` + '!'") == []
    assert messages(f"input.{word}") == []


def test_only_expect_is_told_of_output() -> None:
    for condition, meant in (("expect", "; did you mean `output.bool_value`?"), ("when", "; names start with")):
        definition = mirror({})
        definition["steps"][0][condition] = "outptu.bool_value"
        (violation,) = check(definition).violations
        assert f"there is no `outptu.bool_value` here{meant}" in violation.message
