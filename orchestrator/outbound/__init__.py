"""The edge that talks to workers: calls, circuits, reflection and health. Nothing here decides what is called next."""

from __future__ import annotations

import os

# grpc logs each lost connection to stderr; what matters of that comes back as a Failure. It reads this variable when
# its first channel or server is made, and what an operator has set wins.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
