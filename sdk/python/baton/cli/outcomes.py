"""How a command speaks and ends: forms of output, exit codes, and the error that a person can mend. Every command has
these; what parses command lines may not enter, so that `baton serve` runs without it."""

from __future__ import annotations

import enum
import errno
import sys
from dataclasses import dataclass

NO_OUTPUT_CURE = "what was asked may have been done; give a place to write to that has room"
LISTEN_CURE = "give it with --listen HOST:PORT, or BATON_LISTEN_ADDRESS"
"""Where an address to listen on is taken and another is to be chosen."""


class OutputForm(enum.StrEnum):
    """Form of the data on standard output."""

    TABLE = "table"
    JSON = "json"


class ExitCode(enum.IntEnum):
    """What the command ended with; told in `baton --help`."""

    SUCCESS = 0
    FAILED = 1
    USAGE = 2
    RUN_FAILED = 3
    RUN_CANCELLED = 4
    WAIT_OVER = 5
    NOT_FOUND = 6
    INTERRUPTED = 130


class CommandFailed(Exception):
    """The command cannot do what it was asked; the text tells why, `cure` what to do about it."""

    def __init__(self, message: str, cure: str = "", code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure
        self.code = code


@dataclass(frozen=True, slots=True)
class Choices:
    """What was chosen for every command: `address` of Baton, None for the default, the form of the output, and who
    calls in which namespace, for a development server; None for BATON_NAMESPACE, else `default`."""

    address: str | None
    output: OutputForm
    principal: str = ""
    namespace: str | None = None

    @property
    def as_json(self) -> bool:
        """Whether data is written as JSON."""
        return self.output is OutputForm.JSON


def output_fault(error: OSError) -> CommandFailed | None:
    """The error as one of this command where it is that standard output takes no more, else None."""
    if error.filename is not None or error.errno not in _OUTPUT_FAULTS:
        return None
    # What it still holds would be tried once more at exit.
    sys.stdout = None
    return CommandFailed(f"cannot write to standard output: {error.strerror}", NO_OUTPUT_CURE)


_OUTPUT_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
