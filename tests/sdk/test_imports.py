"""`import baton` is cheap, and every public name is there."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import baton

PACKAGE = Path(baton.__file__).parent


def loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return set(output.split())


def test_import_baton_loads_nothing_heavy() -> None:
    loaded = loaded_by("import baton")
    assert not {"grpc", "google.protobuf", "orchestrator", "typer", "asyncio", "opentelemetry"} & loaded


def test_the_builder_needs_no_grpc_and_the_client_no_server_or_tracing() -> None:
    assert "grpc" not in loaded_by("from baton import workflow, bind, cond, Retry, fallback, branch")
    loaded = loaded_by("from baton import Client, Worker")
    assert not {"orchestrator", "typer", "rich", "pydantic", "yaml", "opentelemetry"} & loaded


def test_a_client_loads_nothing_of_a_worker() -> None:
    loaded = loaded_by("from baton import Client")
    # grpc itself imports the empty packages above these.
    assert not {"grpc_health.v1", "grpc_reflection.v1alpha", "baton.interceptor"} & loaded


def test_every_public_name_is_found_and_known_to_type_checkers() -> None:
    for name in baton.__all__:
        assert getattr(baton, name) is not None
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    typed = {alias.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed - {None} == set(baton.__all__)
    assert set(baton.__all__) <= set(dir(baton))


def test_submodules_do_not_hide_public_names() -> None:
    modules = {path.stem for path in PACKAGE.iterdir()}
    assert not modules & set(baton.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(baton, "nothing")
