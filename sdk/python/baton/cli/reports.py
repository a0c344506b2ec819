"""Errors, as the command line tells them: what happened, each fault with its line, and what to do about it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from baton.cli.outcomes import Choices, CommandFailed, ExitCode
from baton.cli.output import clean, error_console, styled
from baton.cli.wording import in_commands
from baton.connection import ADDRESS_VARIABLE, DEFAULT_ADDRESS
from baton.errors import BatonError, ContractBreaksWorkflows, NotFound, Violation, WaitTimeout, report_lines

if TYPE_CHECKING:
    from baton.v1 import contract_report_pb2

Locate = Callable[[str], int | None]
"""From the path of a fault to the line it stands on, None where that is not known."""

_NOBODY_SERVES = "no registered worker serves"
"""How the fault of a method begins whose whole service nobody has; else its name is wrong."""

_CURES = {
    "WORKFLOW_NOT_FOUND": "see the names with `baton workflow ls`",
    "REVISION_NOT_FOUND": "see the revisions with `baton workflow revisions NAME`",
    "WORKER_NOT_FOUND": "see the names with `baton worker ls`",
    "SCHEDULE_NOT_FOUND": "see the names with `baton schedule ls`",
    "RUN_NOT_FOUND": "see the runs with `baton run ls`",
    "RUN_UNREADABLE": "see the log of the replica, and what is damaged with `baton replica faults`",
    "LIMIT_NOT_FOUND": "see the names with `baton limit ls`",
    "RUN_ENDED": "see how it ended with `baton run get RUN`",
    "RUN_ACTIVE": "wait for its end with `baton run wait RUN`, or cancel it",
    "RUN_SUCCEEDED": "begin a new run at one of its steps with `baton run fork RUN STEP`",
    "STEP_NOT_FOUND": "see the steps with `baton run get RUN`",
    "OUTPUT_NEEDED": "give an output with --type and -i",
    "REQUEST_ID_REUSED": "give another --request-id, or the same input",
    "REFLECTION_UNAVAILABLE": "give the contract with --descriptor-set FILE "
    "(protoc --include_imports --descriptor_set_out=FILE …)",
    "WORKER_UNREACHABLE": "start the worker, or check its address as Baton's host sees it",
    "CONTRACT_BREAKS_WORKFLOWS": "see all of it with `baton worker add … --check`, or register it with --force",
    "SHUTTING_DOWN": "try again in a moment",
    "OWNER_UNAVAILABLE": "try again in a moment",
    "TOO_MANY_REQUESTS": "try again in a moment",
    "TOO_MANY_RUNS": "try again in a moment",
    "SIGNAL_NOT_FOUND": "see the steps of the run with `baton run get RUN`",
    "APPROVAL_NOT_FOUND": "see what waits with `baton approval ls`",
    "APPROVAL_CHANGED": "look at it again with `baton approval get RUN STEP`",
    "APPROVER_NOT_ALLOWED": "somebody else must decide; on a development server, --principal says who you are",
    "INTERNAL": "look for the error_id in the server's log",
}

_COMMAND = re.compile("`[^`]+`")
"""A command in a cure: what the message says itself is not said twice."""

_FAULTY = {"WORKFLOW_INVALID": "the workflow", "INVALID_SCHEDULE": "the schedule"}
"""Reasons whose faults are told one by one, and what has them."""


def report_error(error: Exception, chosen: Choices, *, source: str = "", locate: Locate | None = None) -> ExitCode:
    """Writes an error to standard error, as JSON where that was chosen, and returns the exit code."""
    if isinstance(error, CommandFailed):
        _write(chosen, message=error.message, cure=error.cure)
        return error.code
    if isinstance(error, WaitTimeout):
        _write(chosen, message=str(error), cure=f"go on with: baton run wait {error.run_id}")
        return ExitCode.WAIT_OVER
    if not isinstance(error, BatonError):
        raise error
    if error.code == "UNAVAILABLE" and not error.reason:
        address = _address(chosen)
        _write(chosen, message=f"cannot reach Baton at {address}", cure=how_to_reach(address), code=error.code)
        return ExitCode.FAILED
    if error.code == "UNIMPLEMENTED" and not error.reason:
        _write(chosen, message=f"what answers at {_address(chosen)} is not a Baton of this version", cure=_REACH)
        return ExitCode.FAILED
    message = in_commands(error.message)
    if error.reason in _FAULTY:
        message = f"{source or _FAULTY[error.reason]} is not valid"  # its faults follow, each with its path
    _write(
        chosen,
        message=message,
        report=error.report if isinstance(error, ContractBreaksWorkflows) else None,
        reason=error.reason or error.code,
        code=error.code,
        cure=_CURES.get(error.reason, "") or cure_of(error.violations),
        metadata=dict(error.metadata),
        violations=error.violations,
        source=source,
        locate=locate,
    )
    return ExitCode.NOT_FOUND if isinstance(error, NotFound) else ExitCode.FAILED


def how_to_reach(address: str) -> str:
    """What to do about an address at which nobody answers."""
    scheme, separator, rest = address.partition("://")
    if separator and scheme in ("http", "https"):
        return f"give the address without {scheme}://, such as {rest.partition('/')[0]}"
    if ":" not in address:
        return f"give the address with a port, such as {address}:{DEFAULT_ADDRESS.rpartition(':')[2]}"
    return _REACH


_REACH = f"start one with `baton dev`, or name another with --server or {ADDRESS_VARIABLE}"


def _address(chosen: Choices) -> str:
    import os

    return chosen.address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS


def _write(
    chosen: Choices,
    *,
    message: str,
    report: contract_report_pb2.ContractReport | None = None,
    cure: str = "",
    reason: str = "",
    code: str = "",
    metadata: dict[str, str] | None = None,
    violations: Sequence[Violation] = (),
    source: str = "",
    locate: Locate | None = None,
) -> None:
    if chosen.as_json:
        told: dict[str, object] = {"message": message, "code": code, "reason": reason, "cure": cure}
        told |= {"metadata": metadata or {}, "violations": [violation_as_json(each, locate) for each in violations]}
        if report is not None:
            from google.protobuf.json_format import MessageToDict

            told["report"] = MessageToDict(report, preserving_proto_field_name=True)
        sys.stderr.write(json.dumps({"error": {key: value for key, value in told.items() if value}}) + "\n")
        return
    console = error_console()
    console.print(
        styled("error: ", "bold red"), clean(message), styled(f" [{reason}]" if reason else "", "dim"), sep=""
    )
    if len(violations) > 1 or not any(in_commands(each.message) in message for each in violations):
        print_violations(violations, source, locate)
    for line in report_lines(report) if report is not None else ():
        console.print(f"  {clean(line)}")
    for key, value in sorted((metadata or {}).items()):
        console.print(f"  {clean(key)}: {clean(value)}")
    if cure and not any(command in message for command in _COMMAND.findall(cure)):
        console.print(styled("  " + cure, "cyan"))


def print_violations(violations: Sequence[Violation], source: str, locate: Locate | None) -> None:
    """Writes each fault to standard error: where it is, what is wrong, and its stable reason."""
    console = error_console()
    lines = {each.path: (locate(each.path) if locate is not None else None) or 0 for each in violations}
    for each in sorted(violations, key=lambda each: lines[each.path]):
        where = f"{source}:{lines[each.path]}: " if lines[each.path] else ""
        console.print(f"  {where}", styled(clean(_path(each)), "bold"), sep="")
        console.print(
            f"    {clean(in_commands(each.message))}", styled(f" [{each.reason}]" if each.reason else "", "dim"), sep=""
        )


def cure_of(violations: Sequence[Violation]) -> str:
    """What to do about faults that are not mended in the file: nobody serves what it calls. Else empty."""
    if any(each.reason == "UNKNOWN_METHOD" and each.message.startswith(_NOBODY_SERVES) for each in violations):
        return "register a worker that serves it: baton worker add NAME HOST:PORT"
    return ""


def violation_as_json(violation: Violation, locate: Locate | None) -> dict[str, object]:
    """Returns a fault as JSON, with its line where it is known."""
    told: dict[str, object] = {
        "path": _path(violation) if locate is not None else violation.path,
        "reason": violation.reason,
        "message": in_commands(violation.message),
    }
    line = locate(violation.path) if locate is not None else None
    return told | {"line": line} if line else told


def _path(violation: Violation) -> str:
    """The path into the file: a fault of the request that carries it begins with `workflow.` or `schedule.`."""
    return violation.path.removeprefix("workflow.").removeprefix("schedule.") or "(workflow)"
