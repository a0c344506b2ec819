"""Several processes of pytest side by side, a plugin: what runs in which, in which order, and what runs alone.

With `-n` each process has a Postgres of its own, and takes one file after the other. Long ones come first, so that at
the end none works while all others are done. A test marked `alone` runs while no other process runs a test.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

PROCESSES_PER_CPU = 1.5
"""Half of the time of a test of whole servers is waiting: for a lease, for a moment, for another process."""
MOST_PROCESSES = 8

TOGETHER = ("tests/cli/",)
"""Folders that one process runs whole: their tests share a server and workers that are dear to start."""
LONG = ("tests/cli/", "tests/chaos/", "tests/acceptance/", "tests/benchmarks/", "tests/docs/")
"""Folders that begin first, the longest of them before the others."""

_DOORS = "baton_doors"


class Doors:
    """A lock of all processes of a run of tests: many may hold it together, or one alone.

    Everybody comes through the outer door, one after the other. Who is to be alone keeps it shut until all others have
    left through the inner one, so that a stream of others never holds it up.
    """

    def __init__(self, folder: Path) -> None:
        self._outer, self._inner = folder / "outer", folder / "inner"

    @contextlib.contextmanager
    def entered(self, *, alone: bool) -> Iterator[None]:
        """Waits until it may go on, beside others or alone; there is no limit but that of the others' tests."""
        with self._inner.open("a") as inner:
            with self._outer.open("a") as outer:  # What is closed is unlocked, and so is what a dead process had.
                fcntl.flock(outer, fcntl.LOCK_EX)
                fcntl.flock(inner, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            yield


class Alone:
    """What each process does around a test."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Keeps a test apart from those it may not run beside; the wait is no part of the test's time."""
        with self._doors.entered(alone=item.get_closest_marker("alone") is not None):
            return (yield)


class Folders(LoadScopeScheduling):
    """Gives each process one file after the other, and some folders as if they were one file."""

    def _split_scope(self, nodeid: str) -> str:
        return next((folder for folder in TOGETHER if nodeid.startswith(folder)), nodeid.partition("::")[0])


class Distribution:
    """What the process does that gives the others their tests."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="baton-doors-"))

    def pytest_configure_node(self, node: WorkerController) -> None:
        """Tells a process where the lock is."""
        node.workerinput[_DOORS] = str(self._folder)

    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: object) -> Folders:
        """Decides how tests are shared out, whatever `--dist` says."""
        config.option.loadscopereorder = False  # They are in order already.
        return Folders(config, log)

    def pytest_unconfigure(self) -> None:
        """Removes the lock."""
        shutil.rmtree(self._folder, ignore_errors=True)


def pytest_configure(config: pytest.Config) -> None:
    """Takes the part of this process: to share out tests, or to run some."""
    config.addinivalue_line("markers", "alone: runs while no other process runs a test, because it measures time")
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(Alone(Doors(Path(config.workerinput[_DOORS]))))
    elif config.option.tx and not config.option.collectonly:
        config.pluginmanager.register(Distribution())


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts long folders first, the same way in each process."""
    if hasattr(config, "workerinput"):
        items.sort(key=_place)


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_auto_num_workers() -> int:
    """How many processes `-n auto` means."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_PROCESSES, max(1, int(PROCESSES_PER_CPU * cpus)))


def _place(item: pytest.Item) -> int:
    """Where an item's folder is among the long ones; those that are not come after them, in their order."""
    return next((place for place, folder in enumerate(LONG) if item.nodeid.startswith(folder)), len(LONG))
