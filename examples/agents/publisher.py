"""Publishes reports, as a plain gRPC server: `python -m examples.agents.publisher --folder FOLDER`."""

from __future__ import annotations

from pathlib import Path

import grpc
from answers.v1 import answers_pb2, answers_pb2_grpc

from examples.serving import Context, call_metadata, parser, refuse, serve


class Publisher(answers_pb2_grpc.PublishingServiceServicer):
    """PublishingService, into a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def Publish(self, request: answers_pb2.PublishRequest, context: Context) -> answers_pb2.PublishResponse:
        """Writes a report; written again, it is the same file."""
        call_metadata(context)
        path = (self._folder / request.file).resolve()
        if path.parent != self._folder.resolve():
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "OUTSIDE_FOLDER", "give the name of a file alone")
        self._folder.mkdir(parents=True, exist_ok=True)
        content = request.report.encode()
        path.write_bytes(content)
        return answers_pb2.PublishResponse(file=str(path), bytes=len(content))


def main() -> None:
    """Serves it."""
    command_line = parser(__doc__)
    command_line.add_argument("--folder", type=Path, default=Path("build/reports"), help="where reports go")
    options = command_line.parse_args()
    publisher = Publisher(options.folder)

    def add(server: grpc.aio.Server) -> None:
        answers_pb2_grpc.add_PublishingServiceServicer_to_server(publisher, server)

    serve(options, ("answers.v1.PublishingService",), add)


if __name__ == "__main__":
    main()
