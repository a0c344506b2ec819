"""Workers: servicers served as a gRPC server that registers itself with Baton.

Names are imported when they are first used: whoever reads only the frames in `baton.worker.v1` loads no server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from baton.worker.serving import ADVERTISE_VARIABLE as ADVERTISE_VARIABLE
    from baton.worker.serving import Worker as Worker

__all__ = ["ADVERTISE_VARIABLE", "Worker"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'baton.worker' has no attribute {name!r}")
    from baton.worker import serving

    return getattr(serving, name)
