"""Contracts of the tests' workers, compiled from protos/ and held as descriptors only: nothing here is generated code.

Each test takes the lab under a package name of its own, so that tests on one server do not serve each other's methods.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

PROTOS = Path(__file__).with_name("protos")
_numbers = itertools.count(1)


@cache
def compiled(folder: Path, name: str) -> descriptor_pb2.FileDescriptorSet:
    """Compiles one proto file of a folder, with its imports."""
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "set.binpb"
        arguments = ["-I", str(folder), "--include_imports", f"--descriptor_set_out={target}", name]
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *arguments], check=True)
        return descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())


def renamed(files: descriptor_pb2.FileDescriptorSet, old: str, new: str) -> descriptor_pb2.FileDescriptorSet:
    """Gives a package another name, in every file name and reference."""
    text = json_format.MessageToJson(files)
    text = text.replace(f'"{old}"', f'"{new}"').replace(f".{old}.", f".{new}.")
    text = text.replace(old.replace(".", "/") + "/", new.replace(".", "/") + "/")
    return json_format.Parse(text, descriptor_pb2.FileDescriptorSet())


class Contract:
    """Descriptors of one package, with the message classes made from them."""

    def __init__(self, package: str, files: descriptor_pb2.FileDescriptorSet) -> None:
        self.package, self.files = package, files
        self.pool = descriptor_pool.DescriptorPool()
        for file in files.file:
            self.pool.Add(file)
        self._classes: dict[str, type[Message]] = {}

    def method(self, name: str) -> str:
        """Full name of a method, such as `lab7.v1.Lab/Do` for `Lab/Do`."""
        return f"{self.package}.{name}"

    def type(self, name: str) -> str:
        """Full name of a message."""
        return f"{self.package}.{name}"

    def message(self, name: str, content: dict[str, Any] | None = None) -> Any:
        """A message from its JSON form."""
        return json_format.ParseDict(content or {}, self.of(name)(), descriptor_pool=self.pool)

    def of(self, name: str) -> type[Message]:
        """The class of a message."""
        if name not in self._classes:
            self._classes[name] = GetMessageClass(self.pool.FindMessageTypeByName(self.type(name)))
        return self._classes[name]

    def pack(self, name: str, content: dict[str, Any] | None = None) -> AnyMessage:
        """A message in an Any."""
        packed = AnyMessage()
        packed.Pack(self.message(name, content))
        return packed

    def unpack(self, name: str, packed: AnyMessage) -> Any:
        """A message out of an Any, whose type must be that."""
        assert packed.type_url.rpartition("/")[2] == self.type(name)
        return self.of(name).FromString(packed.value)

    def services(self) -> list[str]:
        """Full names of the package's services."""
        return [
            f"{file.package}.{service.name}"
            for file in self.files.file
            if file.package == self.package
            for service in file.service
        ]


def new_lab() -> Contract:
    """The lab under a name that nobody else has."""
    package = f"lab{next(_numbers)}.v1"
    return Contract(package, renamed(compiled(PROTOS, "lab/v1/lab.proto"), "lab.v1", package))


def zoo() -> Contract:
    """Messages of every kind."""
    return Contract("zoo.v1", compiled(PROTOS, "zoo/v1/zoo.proto"))
