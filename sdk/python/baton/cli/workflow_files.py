"""Workflows from files: YAML or JSON of a baton.v1.Workflow, or a Python file with a workflow object; and the line on
which each part of it stands."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from baton.cli.outcomes import CommandFailed
from baton.cli.yaml_documents import Document, line_of, read_documents
from baton.v1 import workflow_pb2

_PYTHON = re.compile(r"(?P<file>.+\.py)(?::(?P<name>\w+))?")


@dataclass(frozen=True, slots=True)
class WorkflowSource:
    """One workflow and where it came from. `node` is None where there are no lines to tell."""

    file: str
    workflow: workflow_pb2.Workflow
    node: yaml.Node | None = None

    def line(self, path: str) -> int | None:
        """Returns the line of what `path` names, such as `steps[2].request["amount"]`, or of its nearest parent."""
        return line_of(self.node, path.removeprefix("workflow."))


def read_workflows(name: str) -> Iterator[WorkflowSource]:
    """Reads the workflows of a file: `-` is standard input, `module.py:object` Python. Raises CommandFailed."""
    python = _PYTHON.fullmatch(name)
    if python is not None:
        yield from _from_python(Path(python["file"]), python["name"])
        return
    count = 0
    for document in read_documents(name):
        count += 1
        yield _from_document(name, document)
    if not count:
        raise CommandFailed(f"{name}: holds no workflow")


def read_workflow(name: str) -> WorkflowSource:
    """Reads the only workflow of a file. Raises CommandFailed."""
    found = list(read_workflows(name))
    if len(found) > 1:
        raise CommandFailed(f"{name}: holds {len(found)} workflows; one is wanted here")
    return found[0]


def _from_document(name: str, document: Document) -> WorkflowSource:
    if document.has("cron"):
        raise CommandFailed(
            f"{name}: this is a schedule, not a workflow", f"apply it with: baton schedule apply {name}"
        )
    workflow = workflow_pb2.Workflow()
    content = document.content(workflow.DESCRIPTOR, "a workflow is a mapping with `name`, `steps`, …")
    document.parse(content, workflow)
    return WorkflowSource(name, workflow, document.node)


def _from_python(path: Path, name: str | None) -> Iterator[WorkflowSource]:
    """Runs a Python file and takes the named workflow, or all that it holds."""
    from baton.definitions import WorkflowDefinition

    if not path.is_file():
        raise CommandFailed(f"cannot read {path}: no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise CommandFailed(f"cannot read {path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    # Its imports are found beside it and, as with `python -m`, from the folder that one stands in.
    before = list(sys.path)
    sys.path[:0] = [str(path.parent.absolute()), os.getcwd()]
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the file's own code, with whatever it raises
        raise CommandFailed(
            f"{path}:{_line_in(path, error)}: {_in_one_line(error)}",
            'the file is run to find its workflows: put what else it does under `if __name__ == "__main__":`',
        ) from error
    finally:
        sys.path[:] = before
    values = {key: value for key, value in vars(module).items() if isinstance(value, WorkflowDefinition)}
    if name is not None and name not in values:
        known = ", ".join(values) or "none"
        raise CommandFailed(f"{path}: no workflow named {name} (workflows here: {known})")
    if not values:
        raise CommandFailed(f"{path}: holds no object made by @workflow")
    for key in [name] if name is not None else values:
        yield WorkflowSource(str(path), values[key].with_types())


def _line_in(path: Path, error: BaseException) -> int:
    """The line at the top level of a file that an error came out of."""
    if isinstance(error, SyntaxError) and error.lineno:
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return next((line for line in lines if line), 1)


def _in_one_line(error: BaseException) -> str:
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
