"""The documents of a YAML or JSON file, read as messages, and the line on which each part of one stands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from baton.cli.outcomes import CommandFailed
from baton.cli.reading import read_text
from baton.cli.yaml_fields import check_fields

FILE_LIMIT_BYTES = 16 * 1024 * 1024

_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|(\w+)')


class _Loader(yaml.SafeLoader):
    """YAML as JSON has it: dates stay text, and a key stands once."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a file."""

    name: str
    node: yaml.Node
    loader: _Loader

    def has(self, key: str) -> bool:
        """Whether it is a mapping with this key."""
        return isinstance(self.node, yaml.MappingNode) and any(each.value == key for each, _ in self.node.value)

    def content(self, descriptor: Descriptor, wanted: str) -> dict[str, Any]:
        """Returns the document as values, with the fields of a message; `wanted` says so. Raises CommandFailed."""
        with _faults_told(self.name):
            check_fields(self.name, self.node, descriptor)
            content = self.loader.construct_document(self.node)
        if not isinstance(content, dict):
            raise CommandFailed(f"{self.name}:{self.node.start_mark.line + 1}: {wanted}")
        return content

    def parse(self, content: dict[str, Any], message: Message) -> None:
        """Reads values into a message. Raises CommandFailed with the line of what protobuf could not read."""
        try:
            json_format.ParseDict(content, message)
        except json_format.ParseError as error:
            raise CommandFailed(self._fault(str(error), message.DESCRIPTOR.name)) from None

    def _fault(self, text: str, kind: str) -> str:
        """Names the line where protobuf's text has a path such as `Workflow.steps[0].when`."""
        path = re.search(rf"at \"?{kind}\.([\w.\[\]]+?)[.\"]*$", text)
        said = text.rpartition(" field: ")[2].partition(f" at {kind}")[0]
        where = path[1] if path is not None else ""
        return f"{self.name}:{line_of(self.node, where) or 1}: {where}: {said}"


def read_documents(name: str) -> Iterator[Document]:
    """Reads the documents of a file that are not empty; `-` is standard input. Raises CommandFailed."""
    text = read_text(name, FILE_LIMIT_BYTES)
    with _faults_told(name):
        loader = _Loader(text)
    try:
        while (node := _next_node(name, loader)) is not None:
            if isinstance(node, yaml.ScalarNode) and not node.value:
                continue  # such as after a closing `---`
            yield Document(name, node, loader)
    finally:
        loader.dispose()


def _next_node(name: str, loader: _Loader) -> yaml.Node | None:
    with _faults_told(name):
        return loader.get_node() if loader.check_node() else None


@contextmanager
def _faults_told(name: str) -> Iterator[None]:
    """Tells what YAML finds wrong, with the line."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
        raise CommandFailed(f"{name}:{line}: {_told(error.problem or 'not YAML')}") from None
    except yaml.YAMLError:
        raise CommandFailed(f"{name}: not YAML: it holds a character that YAML forbids") from None
    except RecursionError:
        raise CommandFailed(f"{name}: nested too deeply") from None


def _told(problem: str) -> str:
    if problem.endswith(("'<stream end>'", "end of stream")):
        return "it ends too early: a bracket, a brace or a quote is not closed"
    return problem


def line_of(node: yaml.Node | None, path: str) -> int | None:
    """Returns the line of what `path` names, such as `steps[2].request["amount"]`, or of its nearest parent; None
    without a node."""
    if node is None:
        return None
    line = node.start_mark.line
    for quoted, plain in _TOKEN.findall(path):
        found = _child(node, quoted or plain)
        if found is None:
            break
        line, node = found
    return int(line) + 1


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
