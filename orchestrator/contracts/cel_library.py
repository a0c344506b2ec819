"""The CEL library, loaded when the first expression is checked: a server whose workflows have none does without its
12 MB. `NewEnv` and `Type` are the library's. The only module that imports it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cel_expr_python.cel import NewEnv as NewEnv
    from cel_expr_python.cel import Type as Type

_NAMES = frozenset({"NewEnv", "Type"})


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cel_expr_python import cel

    value = globals()[name] = getattr(cel, name)
    return value


def extensions() -> list[Any]:
    """The extensions of the language that expressions may use: optional values, math and strings."""
    from cel_expr_python.ext import ext_math, ext_optional, ext_strings

    return [ext_optional.ExtOptional(), ext_math.ExtMath(), ext_strings.ExtStrings()]
