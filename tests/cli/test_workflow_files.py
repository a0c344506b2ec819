"""Workflows from files: what is read, on which line a fault is told, and what is no workflow."""

from __future__ import annotations

from pathlib import Path

import pytest
from baton.cli.outcomes import CommandFailed
from baton.cli.workflow_files import read_workflow, read_workflows

ROOT = Path(__file__).parents[2]


def _write(folder: Path, text: str, name: str = "workflow.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("name: a\nsteps:\n  - id: x\n    methodd: p.S/M\n", 4, "Step has no field methodd; did you mean method?"),
        ("name: a\nsteps:\n  - id: x\n    when: true\n", 4, "when is text: put it in quotes"),
        ("name: a\nsteps: {id: x}\n", 2, "steps is a list"),
        ("name: a\nsteps:\n  - x\n", 3, "Step is written as a mapping of its fields"),
        ("name: a\n\nname: b\n", 3, "the key name stands twice"),
        (
            "name: a\nsteps:\n  - id: x\n    request:\n      f: {path: input}\n      f: {path: input}\n",
            6,
            "f stands twice",
        ),
        ("name: a\nsteps:\n  - id: x\n    attempt_timeout: 5x\n", 4, "steps[0].attempt_timeout"),
        ("name: a\nsteps:\n  - id: x\n    delivery: NEVER\n", 4, "steps[0].delivery: NEVER is none of DELIVERY_"),
        ("name: a\nsteps:\n  - {id: x, delivery: 1}\n  - {id: y, delivery: '2'}\n  - z\n", 5, "Step is written"),
        ("name: [a\n", 2, "it ends too early: a bracket, a brace or a quote is not closed"),
        ('name: "a\n', 2, "it ends too early"),
        ('{"name": "a", "steps":\n', 2, "it ends too early"),
        (
            "name: a\nsteps: [{id: x, attempt_timeout: 2}]\n",
            2,
            'steps[0].attempt_timeout: a length of time is text with its unit: write "2s"',
        ),
        ("name: a\nrun_timeout: 0.5\n", 2, 'run_timeout: a length of time is text with its unit: write "0.5s"'),
        (
            "name: a\nsteps:\n  - id: x\n    request:\n      name: input.name\n",
            5,
            'steps[0].request["name"]: a binding is written as {path: input.name}, {literal: Ada} or {expression: …}',
        ),
        ("- name: a\n", 1, "mapping"),
    ],
)
def test_a_slip_is_told_with_its_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    file = _write(tmp_path, text)
    with pytest.raises(CommandFailed) as told:
        read_workflow(file)
    assert told.value.message.startswith(f"{file}:{line}: ")
    assert said in told.value.message


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("empty.yaml", "---\n", "holds no workflow"),
        ("latin.yaml", None, "not UTF-8"),
        ("alias.yaml", "steps: [{request: {a: &a {message: {fields: {b: *a}}}}}]", "deep"),
        ("raises.py", "1 / 0\n", "ZeroDivisionError"),
        ("daily.yaml", "name: a\ncron: '* * * * *'\nrun: {workflow: a}\n", "this is a schedule, not a workflow"),
        ("nothing.py", "value = 1\n", "no object made by @workflow"),
    ],
)  # fmt: skip
def test_what_is_no_workflow_is_refused(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"name: \xe4\n" if text is None else text.encode())
    with pytest.raises(CommandFailed) as told:
        read_workflow(str(path))
    assert said in told.value.message


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(CommandFailed) as told:
        read_workflow("/nowhere/workflow.yaml")
    assert told.value.message == "cannot read /nowhere/workflow.yaml: No such file or directory"


def test_several_documents_are_several_workflows(tmp_path: Path) -> None:
    file = _write(tmp_path, "name: a\nsteps: [{id: x, method: p.S/M}]\n---\nname: b\nsteps: []\n---\n")
    assert [each.workflow.name for each in read_workflows(file)] == ["a", "b"]
    with pytest.raises(CommandFailed) as told:
        read_workflow(file)
    assert "holds 2 workflows" in told.value.message


def test_json_and_camel_case_are_the_same_message(tmp_path: Path) -> None:
    yaml = read_workflow(_write(tmp_path, "name: a\ninput_type: x.Y\nsteps:\n  - {id: x, attempt_timeout: 5s}\n"))
    json = '{"name": "a", "inputType": "x.Y", "steps": [{"id": "x", "attemptTimeout": "5s"}]}'
    assert read_workflow(_write(tmp_path, json, "workflow.json")).workflow == yaml.workflow


def test_a_date_stays_text(tmp_path: Path) -> None:
    source = read_workflow(
        _write(tmp_path, "name: a\nsteps:\n  - id: x\n    request: {t: {literal: 2026-01-01T00:00:00Z}}\n")
    )
    assert source.workflow.steps[0].request["t"].literal.string_value == "2026-01-01T00:00:00Z"


def test_a_path_leads_to_its_line() -> None:
    name = str(ROOT / "examples/orders/orders.yaml")
    source = read_workflow(name)
    lines = Path(name).read_text().splitlines()
    line = source.line('steps[1].request["amount"].message.fields["minor_units"].expression')
    assert line is not None
    assert lines[line - 1].strip() == "expression: >-"
    assert source.line("workflow.run_timeout") == source.line("run_timeout")
    gone = source.line('steps[0].request["nothing"]')
    assert gone is not None
    assert lines[gone - 1].strip() == "request:"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("value = 1\n\n1 / 0\n", 3, "ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)\n", 2, "SystemExit: 3"),
        ("def f():\n    raise ValueError('a\\nb')\nf()\n", 3, "ValueError: a"),
        ("value = 1\nvalue =\n", 2, "SyntaxError"),
    ],
)
def test_what_a_python_file_raises_is_told_in_one_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    file = _write(tmp_path, text, "script.py")
    with pytest.raises(CommandFailed) as told:
        read_workflow(file)
    assert told.value.message.startswith(f"{file}:{line}: {said}")
    assert "\n" not in told.value.message
    assert 'if __name__ == "__main__":' in told.value.cure
