"""`python -m examples.demo [FOLDER]`; without a folder, data and logs lie in build/demo."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main(folder: Path) -> int:
    """Runs the demo with its data in `folder`; returns 0 only if everything went as told."""
    folder.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("a demo is running here already", file=sys.stderr)
            return 1
        _empty(folder)
        # The Postgres is forked before grpc is imported: grpc's threads do not survive a fork.
        from orchestrator.postgres.embedded import EmbeddedPostgres
        from orchestrator.postgres.errors import EmbeddedPostgresError

        try:
            with EmbeddedPostgres(folder / "postgres") as postgres:
                from examples.demo.story import Story

                return asyncio.run(Story(ROOT, folder, postgres.dsn).tell())
        except EmbeddedPostgresError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)
            return 130


def _empty(folder: Path) -> None:
    """Removes what the last demo left; where root runs Postgres, its data may lie elsewhere, behind a link."""
    data = folder / "postgres" / "data"
    if data.is_symlink():
        shutil.rmtree(data.resolve(), ignore_errors=True)
    shutil.rmtree(folder)
    folder.mkdir()


if __name__ == "__main__":
    place = Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else ROOT / "build" / "demo"
    os.chdir(ROOT)
    sys.exit(main(place))
