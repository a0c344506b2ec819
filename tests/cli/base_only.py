"""Runs a module as a program in which only the base dependencies of `baton` can be imported, as after
`pip install baton`: `python base_only.py MODULE ARGUMENT...`. What is installed beside them is not found."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from types import ModuleType

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def base_distributions() -> set[str]:
    """`baton` and all that it requires without extras."""
    found = {"baton"}
    left = ["baton"]
    while left:
        try:
            requirements = [Requirement(text) for text in requires(left.pop()) or ()]
        except PackageNotFoundError:
            continue  # what it would need on another platform
        for requirement in requirements:
            name = canonicalize_name(requirement.name)
            if name not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                found.add(name)
                left.append(name)
    return found


class NotInstalled:
    """Finds nothing of the distributions that are left out."""

    def __init__(self) -> None:
        base = base_distributions()
        self.packages = {
            package
            for package, distributions in packages_distributions().items()
            if not base & {canonicalize_name(name) for name in distributions}
        }

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Raises where the module belongs to something that is not installed."""
        if name.partition(".")[0] in self.packages:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


if __name__ == "__main__":
    finder = NotInstalled()
    for loaded in [name for name in sys.modules if name.partition(".")[0] in finder.packages]:
        del sys.modules[loaded]
    sys.meta_path.insert(0, finder)
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
