"""What `benchmarks/kernels.py` measures: one adapter file a peer, and how a cell of its tables is made.

An adapter names a peer's function for one task and calls it with a `Problem`; it imports the peer only when it runs, so
an absent peer costs one cell. Add a peer: write its file, and put its ADAPTERS in the list below.
"""

from kernel_peers import cce, liger, limits, ours, plain, quack, trl, verl
from kernel_peers.base import TITLES, Adapter, Size, Task

# In the order they run: those that are known to work first, so that little time left goes to them.
ADAPTERS: list[Adapter] = [
    *limits.ADAPTERS,
    *ours.ADAPTERS,
    *trl.ADAPTERS,
    *liger.ADAPTERS,
    *verl.ADAPTERS,
    *cce.ADAPTERS,
    *plain.ADAPTERS,
    *quack.ADAPTERS,
]

PEERS: list[str] = list(dict.fromkeys(adapter.peer for adapter in ADAPTERS))

__all__ = ["ADAPTERS", "PEERS", "TITLES", "Adapter", "Size", "Task"]
