"""The edge that talks to workers: calls, circuits, reflection and health. Nothing here decides what is called next."""

from __future__ import annotations

import os

# grpc logs each lost connection to stderr; what matters of that comes back as a Failure. It reads this variable when it
# is imported, so an entry point that imports grpc before this package has to set it itself. What is set already wins.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
