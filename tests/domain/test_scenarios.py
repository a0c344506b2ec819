"""The scenarios in scenarios/*.txt: a graph, inputs, and under each input the decision that it gives.

`pytest tests/domain --rewrite` renews the decisions; read the difference before it is committed. scenarios/README.md
tells the language.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from . import scenario

FILES = sorted(Path(__file__).parent.joinpath("scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scenario_gives_the_decisions_written_in_it(
    path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = path.read_text()
    found = scenario.play(
        text, lambda limit: monkeypatch.setattr("orchestrator.domain.plan.decision.MAX_EVENTS", limit)
    )
    if request.config.getoption("--rewrite", default=False):
        path.write_text(found)
    else:
        assert found == text


def test_there_are_scenarios() -> None:
    assert len(FILES) > 150
