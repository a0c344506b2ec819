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
from google.protobuf import json_format

from baton.cli.outcomes import CommandFailed
from baton.cli.yaml_fields import check_fields
from baton.v1 import workflow_pb2

FILE_LIMIT_BYTES = 16 * 1024 * 1024

_PYTHON = re.compile(r"(?P<file>.+\.py)(?::(?P<name>\w+))?")
_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|(\w+)')


class _Loader(yaml.SafeLoader):
    """YAML as JSON has it: dates stay text, and a key stands once."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True, slots=True)
class WorkflowSource:
    """One workflow and where it came from. `node` is None where there are no lines to tell."""

    file: str
    workflow: workflow_pb2.Workflow
    node: yaml.Node | None = None

    def line(self, path: str) -> int | None:
        """Returns the line of what `path` names, such as `steps[2].request["amount"]`, or of its nearest parent."""
        if self.node is None:
            return None
        node = self.node
        line = node.start_mark.line
        for quoted, plain in _TOKEN.findall(path.removeprefix("workflow.")):
            found = _child(node, quoted or plain)
            if found is None:
                break
            line, node = found
        return int(line) + 1


def read_workflows(name: str) -> Iterator[WorkflowSource]:
    """Reads the workflows of a file: `-` is standard input, `module.py:object` Python. Raises CommandFailed."""
    python = _PYTHON.fullmatch(name)
    if python is not None:
        yield from _from_python(Path(python["file"]), python["name"])
        return
    text = _text_of(name)
    loader = _Loader(text)
    count = 0
    try:
        while loader.check_node():
            node = loader.get_node()
            if node is None or (isinstance(node, yaml.ScalarNode) and not node.value):
                continue  # an empty document, such as after a closing `---`
            count += 1
            yield _from_node(name, loader, node)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
        raise CommandFailed(f"{name}:{line}: {error.problem or 'not YAML'}") from None
    except yaml.YAMLError:
        raise CommandFailed(f"{name}: not YAML: it holds a character that YAML forbids") from None
    except RecursionError:
        raise CommandFailed(f"{name}: nested too deeply") from None
    finally:
        loader.dispose()
    if not count:
        raise CommandFailed(f"{name}: holds no workflow")


def read_workflow(name: str) -> WorkflowSource:
    """Reads the only workflow of a file. Raises CommandFailed."""
    found = list(read_workflows(name))
    if len(found) > 1:
        raise CommandFailed(f"{name}: holds {len(found)} workflows; one is wanted here")
    return found[0]


def _text_of(name: str) -> str:
    try:
        if name == "-":
            return sys.stdin.read()
        path = Path(name)
        if path.stat().st_size > FILE_LIMIT_BYTES:
            raise CommandFailed(f"{name}: larger than {FILE_LIMIT_BYTES >> 20} MiB")
        return path.read_text("utf-8")
    except OSError as error:
        raise CommandFailed(f"cannot read {name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CommandFailed(f"cannot read {name}: it is not UTF-8") from None


def _from_node(name: str, loader: _Loader, node: yaml.Node) -> WorkflowSource:
    check_fields(name, node, workflow_pb2.Workflow.DESCRIPTOR)
    document = loader.construct_document(node)
    if not isinstance(document, dict):
        raise CommandFailed(f"{name}:{node.start_mark.line + 1}: a workflow is a mapping with `name`, `steps`, …")
    workflow = workflow_pb2.Workflow()
    source = WorkflowSource(name, workflow, node)
    try:
        json_format.ParseDict(document, workflow)
    except json_format.ParseError as error:
        raise CommandFailed(_parse_fault(source, str(error))) from None
    return source


def _parse_fault(source: WorkflowSource, text: str) -> str:
    """Names the line of what protobuf could not read, where its text has a path such as `Workflow.steps[0].when`."""
    path = re.search(r"at \"?Workflow\.([\w.\[\]]+?)[.\"]*$", text)
    said = text.rpartition(" field: ")[2].partition(" at Workflow")[0]
    where = path[1] if path is not None else ""
    return f"{source.file}:{source.line(where) or 1}: {where}: {said}"


def _child(node: yaml.Node, token: str) -> tuple[int, yaml.Node] | None:
    """Finds a child by field name, key or index: the line it begins on, and the child."""
    if isinstance(node, yaml.SequenceNode) and token.isdigit() and int(token) < len(node.value):
        child: yaml.Node = node.value[int(token)]
        return child.start_mark.line, child
    if isinstance(node, yaml.MappingNode):
        camel = re.sub(r"_([a-z0-9])", lambda match: match[1].upper(), token)
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in (token, camel):
                return key.start_mark.line, value
    return None


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
