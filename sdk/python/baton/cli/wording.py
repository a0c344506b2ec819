"""What Baton says to any caller, in the words of this command line: for an RPC its text tells to call, the command."""

from __future__ import annotations

import re

COMMANDS = {
    "RegisterWorker": "worker add",
    "ListWorkers": "worker ls",
    "ApplyWorkflow": "workflow apply",
    "ListWorkflows": "workflow ls",
    "ListWorkflowRevisions": "workflow revisions",
    "SubmitRun": "run submit",
    "GetRun": "run get",
    "ListRuns": "run ls",
    "ListRunSteps": "run get",
    "WatchRun": "run watch",
    "CancelRun": "run cancel",
    "SignalRun": "run signal",
    "RetryRun": "run retry",
    "RetryStep": "run retry --step",
    "SkipStep": "run skip",
    "ForkRun": "run fork",
    "PauseRun": "run pause",
    "ResumeRun": "run resume",
    "ListApprovals": "approval ls",
    "ListSchedules": "schedule ls",
    "ApplyLimit": "limit apply",
    "ListLimits": "limit ls",
}
"""For each RPC the command that calls it."""

_ADVICE = re.compile(rf"(\bwith|\bsee|\bthat|[;:]) ({'|'.join(COMMANDS)})\b")
"""An RPC where a text says what to do, and not where it tells of a workflow or a method of this name."""

_BOTH = ("ListRuns and `baton run ls` list it", "`baton run ls` lists it")
"""A text that names the RPC and the command already."""


def in_commands(text: str) -> str:
    """The text with commands in the place of RPCs."""
    return _ADVICE.sub(lambda found: f"{found[1]} `baton {COMMANDS[found[2]]}`", text.replace(*_BOTH))
