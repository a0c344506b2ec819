"""Options of the tests of the pure core."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--rewrite`, which renews the decisions written in the scenarios: `pytest tests/domain --rewrite`."""
    parser.addoption("--rewrite", action="store_true", help="renew the decisions in tests/domain/scenarios")
