"""The pages say what is: their links, names, settings, limits, reasons, workflows and command lines are checked."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import shlex
from dataclasses import fields
from functools import cache
from pathlib import Path
from string import Formatter
from types import ModuleType

import protovalidate
import pytest
import typer
import yaml
from baton import Client, RunHandle, Worker
from baton.cli.application import app
from baton.cli.schedule_files import read_schedules
from baton.v1 import error_reason_pb2, run_pb2, workflow_pb2
from google.protobuf import json_format
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from shop.v1 import inventory_pb2, notifications_pb2, payments_pb2, shipping_pb2

from examples.orders.notifications import TEXTS
from orchestrator import config
from orchestrator.contracts.children import Applied
from orchestrator.contracts.compile import check_workflow
from orchestrator.contracts.descriptors import Contract, read_contract
from orchestrator.engine.schedule_ports import ScheduleKey
from orchestrator.engine.schedule_rules import ScheduleRules
from orchestrator.rpc.errors import CODES
from tests.contracts.corpus import contract_of
from tests.docs.pages import DOCS, ROOT, anchors, blocks, files_named, headings, links, pages, prose, rows

ALL_PAGES = pages()
NAMES = [str(page.relative_to(ROOT)) for page in ALL_PAGES]
OWN = [page for page in ALL_PAGES if page.parent in (DOCS, DOCS / "decisions")]


def shop() -> Contract:
    files: dict[str, FileDescriptorProto] = {}

    def add(file: FileDescriptor) -> None:
        for dependency in file.dependencies:
            add(dependency)
        files[file.name] = FileDescriptorProto.FromString(file.serialized_pb)

    for module in (inventory_pb2, notifications_pb2, payments_pb2, shipping_pb2):
        add(module.DESCRIPTOR)
    return read_contract(files.values())


def contract_in(page: str, file: str) -> Contract:
    """The contract of a proto file that a page shows."""
    proto = next(block for block in blocks(DOCS / page) if block.file == file)
    return contract_of(proto.text, file)


@pytest.mark.parametrize("page", ALL_PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for target in links(page):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            wrong.append(target)
    assert not wrong


@pytest.mark.parametrize("page", OWN, ids=[page.name for page in OWN])
def test_files_that_are_named_are_there(page: Path) -> None:
    made_by_the_reader = {block.file for own in OWN for block in blocks(own)}
    folders = [found for found in (ROOT / "orchestrator").iterdir() if found.is_dir()]
    more = ("orchestrator", "orchestrator/postgres/queries", "docs", "sdk/python", "third_party/protovalidate")
    places = (ROOT, *(ROOT / name for name in more), *folders)
    missing = [
        name
        for name in files_named(page)
        if name not in made_by_the_reader and not any(list(place.glob(name)) for place in places)
    ]
    assert not missing


@pytest.mark.parametrize("page", OWN, ids=[page.name for page in OWN])
def test_tests_that_are_named_are_there(page: Path) -> None:
    text = prose(page)
    for folder in re.findall(r"`(tests/[\w/]+)/?`", text):
        assert (ROOT / folder).is_dir(), folder
    code = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    missing = [name for name in re.findall(r"`(test_\w+)`", text) if f"def {name}(" not in code]
    assert not missing


def test_every_page_is_on_the_map() -> None:
    listed = set(links(DOCS / "index.md"))
    assert {page.name for page in DOCS.glob("*.md")} - {"index.md"} <= listed


def test_the_module_map_is_whole() -> None:
    text = prose(DOCS / "architecture.md")
    modules = [
        path
        for package in ("domain", "contracts", "engine", "postgres", "rpc", "outbound", "security", "telemetry")
        for path in (ROOT / "orchestrator" / package).glob("*.py")
    ]
    sdk = ROOT / "sdk/python/baton"
    modules += [
        path for place in (sdk, sdk / "worker", sdk / "cli", ROOT / "tests/chaos") for path in place.glob("*.py")
    ]
    modules = [path for path in modules if not path.stem.startswith(("__", "test_"))]
    assert [path for path in modules if f"`{path.stem}`" not in text] == []


def test_decisions_have_their_three_parts() -> None:
    found = sorted((DOCS / "decisions").glob("*.md"))
    numbers = [int(page.name[:3]) for page in found]
    assert numbers == sorted(set(numbers)), "two have the same number"
    for page in found:
        assert headings(page, "##") == ["Context", "Decision", "Consequences"], page.name


@pytest.mark.parametrize(
    "block",
    [block for page in OWN for block in blocks(page) if block.language == "yaml" and page.name != "schedules.md"],
    ids=lambda block: f"{block.page}:{block.line}",
)
def test_workflows_are_valid(block: object) -> None:
    text = block.text  # type: ignore[attr-defined]
    workflow = json_format.ParseDict(yaml.safe_load(text), workflow_pb2.Workflow())
    assert protovalidate.collect_violations(workflow) == []
    shown = [("quickstart.md", "greeter.proto"), ("delegation.md", "research.proto")]
    contracts = [("shop", shop()), *((file, contract_in(page, file)) for page, file in shown)]
    checked = check_workflow(workflow, contracts, applied=applied())
    assert checked.violations == ()


def test_messages_to_customers_have_what_their_texts_need() -> None:
    faults, steps = [], 0
    for block in (block for page in OWN for block in blocks(page) if block.language == "yaml"):
        for step in yaml.safe_load(block.text).get("steps", ()):
            if step.get("method") != "shop.v1.NotificationService/SendNotification":
                continue
            steps += 1
            request = step["request"]
            template = notifications_pb2.NotificationTemplate.Value(request["template"]["literal"])
            needed = {name for _, name, _, _ in Formatter().parse(TEXTS[template]) if name}
            if missing := needed - request.get("parameters", {"map": {"entries": {}}})["map"]["entries"].keys():
                faults.append(f"{block.page}:{block.line}: {step['id']} lacks {', '.join(sorted(missing))}")
    assert steps
    assert faults == []


@cache
def applied() -> Applied:
    """Compiles the first workflow that the page on workflows shows, which a later one runs."""
    text = next(block.text for block in blocks(DOCS / "workflows.md") if block.language == "yaml")
    workflow = json_format.ParseDict(yaml.safe_load(text), workflow_pb2.Workflow())
    compiled = check_workflow(workflow, [("shop", shop())]).compiled
    assert compiled is not None
    return {(workflow.name, ""): compiled}


def test_schedules_are_valid(tmp_path: Path) -> None:
    workflows = {block.file: block.text for block in blocks(DOCS / "quickstart.md") if block.language == "yaml"}
    found = [block for block in blocks(DOCS / "schedules.md") if block.language == "yaml"]
    assert found
    for block in found:
        (tmp_path / block.file).write_text(block.text)
        (source,) = read_schedules(str(tmp_path / block.file))
        ScheduleRules(ScheduleKey("default", source.schedule.name), source.schedule)
        definition = yaml.safe_load(workflows[f"{source.schedule.run.workflow}.yaml"])
        pool = DescriptorPool()
        for file in FileDescriptorSet.FromString(contract_in("quickstart.md", "greeter.proto").files).file:
            pool.Add(file)
        message = GetMessageClass(pool.FindMessageTypeByName(definition["input_type"]))()
        json_format.ParseDict(source.written_input, message)


def test_python_can_be_read() -> None:
    for page in ALL_PAGES:
        for block in blocks(page):
            if block.language == "python":
                # What stands alone is the inside of a handler.
                compile(block.text, f"{block.page}:{block.line}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_the_readme_shows_what_runs() -> None:
    shown = blocks(ROOT / "README.md")
    for block in shown:
        if block.language == "python":
            exec(compile(block.text, f"{block.page}:{block.line}", "exec"), {"__name__": "shown"})
    (table,) = [block.text.partition("STEP ")[2] for block in shown if "STEP " in block.text]
    steps = yaml.safe_load((ROOT / "examples" / "orders" / "orders.yaml").read_text())["steps"]
    assert [line.split()[0] for line in table.splitlines()[1:]] == [step["id"] for step in steps]


def members(cls: type) -> set[str]:
    """What a class offers: its public methods and properties, and what its objects are given when they are made."""
    functions = [node for node in ast.walk(ast.parse(inspect.getsource(cls))) if isinstance(node, ast.FunctionDef)]
    made = next(function for function in functions if function.name == "__init__")
    parts = [node for node in ast.walk(made) if isinstance(node, ast.Attribute)]
    given = {part.attr for part in parts if isinstance(part.ctx, ast.Store)}
    return {name for name in {*dir(cls), *given} if not name.startswith("_")}


@pytest.mark.parametrize(
    ("cls", "heading"), [(Client, "### All calls"), (RunHandle, "### A run"), (Worker, "## Workers")]
)
def test_all_that_the_sdk_offers_is_told_with_its_arguments(cls: type, heading: str) -> None:
    told = dict(
        named for row in rows(DOCS / "python.md", heading) for named in re.findall(r"`(\w+)(?:\(([^`]*)\))?`", row[0])
    )
    assert set(told) == members(cls)
    for name, arguments in told.items():
        taken = inspect.signature(getattr(cls, name)).parameters.values() if arguments else ()
        forms = {one.name + "=" * (one.kind is inspect.Parameter.KEYWORD_ONLY) for one in taken}
        assert set(re.findall(r"\w+=?", arguments)) <= forms, name


def command_lines() -> list[tuple[str, str]]:
    found = []
    for page in ALL_PAGES:
        for block in blocks(page):
            if block.language in ("sh", "", "console"):
                lines = re.findall(r"(?:^|[|(=] ?)(?:\w+=\S+ )*(baton [^|)\n]*)", block.text, re.MULTILINE)
                found += [(f"{block.page}:{block.line}", line.rstrip(" &")) for line in lines]
    return found


@pytest.mark.parametrize(("place", "line"), command_lines())
def test_command_lines_are_understood(place: str, line: str) -> None:
    command = typer.main.get_command(app)
    words = shlex.split(line, comments=True)[1:]
    context = command.make_context("baton", words, resilient_parsing=False)
    while rest := [*context._protected_args, *context.args]:
        name, inner, words = context.command.resolve_command(context, rest)  # type: ignore[attr-defined]
        assert inner is not None
        context = inner.make_context(name, words, parent=context)
        if not hasattr(inner, "commands"):
            break
    assert "=" not in (context.params.get("input_") or ""), "--input names a file; a field is set with -i"


def test_every_reason_has_a_section() -> None:
    sections = headings(DOCS / "errors.md", "###")
    reasons = [name.removeprefix("ERROR_REASON_") for name, number in error_reason_pb2.ErrorReason.items() if number]
    assert sorted(sections) == sorted(reasons)


def test_errors_have_the_code_that_is_sent() -> None:
    text = prose(DOCS / "errors.md")
    for reason, code in CODES.items():
        assert re.search(rf"^### {reason}\n\n{code.name}[.,]", text, re.MULTILINE), reason


def test_every_setting_is_told_with_its_default() -> None:
    defaults = config.Settings()
    wanted = {f"BATON_{one.name.upper()}": getattr(defaults, one.name) for one in fields(defaults)}
    del wanted["BATON_LIMITS"]
    wanted |= {f"BATON_{one.name.upper()}": getattr(defaults.limits, one.name) for one in fields(defaults.limits)}
    told = {row[0].strip("`"): row[1].strip("`") for row in rows(DOCS / "configuration.md") if "`BATON_" in row[0]}
    assert {name: told.pop(name, "not told") for name in wanted} == {name: str(value) for name, value in wanted.items()}
    assert set(told) == set(config.OTHER_NAMES)


def test_limits_of_expressions_are_told() -> None:
    told = [(row[1].strip("`"), row[2]) for row in rows(DOCS / "workflows.md") if re.search(r"`\w+\.[A-Z_]+`", row[1])]
    assert told
    for name, value in told:
        module, _, constant = name.partition(".")
        assert value == str(getattr(importlib.import_module(f"orchestrator.contracts.{module}"), constant)), name


def test_every_reason_to_wait_is_told() -> None:
    told = {row[0] for row in rows(DOCS / "observability.md")}
    assert {name.removeprefix("WAIT_KIND_") for name, number in run_pb2.WaitKind.items() if number} <= told
    assert {name.removeprefix("QUEUE_REASON_") for name, number in run_pb2.QueueReason.items() if number} <= told


def test_what_a_worker_and_a_trace_carry_is_told() -> None:
    sent = (ROOT / "orchestrator" / "outbound" / "calls.py").read_text()
    keys = set(re.findall(r'"((?:baton-[a-z-]+)|idempotency-key|traceparent)"', sent))
    assert len(keys) > 5
    assert keys == {row[0].strip("`") for row in rows(DOCS / "workers.md") if row[0].strip("`") in keys}
    telemetry = ROOT / "orchestrator" / "telemetry"
    spans = "".join((telemetry / f"{name}.py").read_text() for name in ("span", "spans", "step_spans"))
    attributes = set(re.findall(r'"(baton\.[a-z_.]+)"', spans))
    assert attributes <= set(re.findall(r"`(baton\.[a-z_.]+)`", prose(DOCS / "observability.md")))


def generator(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_line_is_as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "TERMINAL_WIDTH"):
        monkeypatch.setenv(name, "100")
    assert (DOCS / "cli.md").read_text() == generator("generate_cli").page(), "run python docs/generate_cli.py"
