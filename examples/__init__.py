"""Example workers and workflows for Baton, run from the repository's root as `python -m examples...`."""

import sys
from pathlib import Path

# Generated modules import each other by their proto package (`from shop.v1 import order_pb2`), so the folder that holds
# the packages must be on the path. The examples are no distribution, so nothing else would put it there.
_GENERATED = str(Path(__file__).parent / "gen")
if _GENERATED not in sys.path:
    sys.path.insert(0, _GENERATED)
