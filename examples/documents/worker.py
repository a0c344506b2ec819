"""Serves the agents as a plain gRPC server: `python -m examples.documents.worker --port 0`."""

from __future__ import annotations

from examples.documents.agents import SERVICES, add_agents
from examples.serving import parser, serve


def main() -> None:
    """Serves all agents."""
    serve(parser(__doc__).parse_args(), SERVICES, add_agents)


if __name__ == "__main__":
    main()
