"""Files with a changed bit, for the tests of what reads them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from relukan_deploy.errors import CheckpointError


def refusals_of_changed_bits(path: Path, read: Callable[[Path], object], *, times: int = 300) -> int:
    """How often `read` raises CheckpointError, each time with another bit of the file changed."""
    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(times):
        changed = bytearray(whole)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        try:
            read(path)
        except CheckpointError:
            refused += 1
    return refused
