"""Ten thousand ways to damage bytes, and a watch on memory meanwhile."""

from __future__ import annotations

import copy
import random
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["GROWTH", "MUTATIONS", "damaged", "resident_bytes", "rounds", "with_another_value"]

MUTATIONS = 10_000
GROWTH = 32 << 20  # bytes by which memory may differ after the first half


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def rounds(seed: int) -> Iterator[random.Random]:
    """A source of chance for each mutation; fails if the second half took more memory than the first."""
    before = 0
    for index in range(MUTATIONS):
        if index == MUTATIONS // 2:
            before = resident_bytes()
        yield random.Random(seed * MUTATIONS + index)
    assert resident_bytes() - before < GROWTH


def damaged(data: bytes, chance: random.Random) -> bytes:
    """The bytes with a few changed, missing, repeated or put in."""
    made = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(made) + 1)
        kind = chance.randrange(5)
        if kind == 0 and at < len(made):
            made[at] = chance.randrange(256)
        elif kind == 1 and at < len(made):
            made[at] ^= 1 << chance.randrange(8)
        elif kind == 2:
            del made[at : at + chance.randint(1, 40)]
        elif kind == 3:
            made[at:at] = made[at : at + chance.randint(1, 40)]
        else:
            made[at:at] = chance.randbytes(chance.randint(1, 12))
    return bytes(made)


_NUMBERS = (True, -1, 0, 1, 2, 2**31, 2**63, -(2**70), 1e308, 0.5)
_VALUES: tuple[object, ...] = (
    *_NUMBERS,
    None,
    "",
    "x",
    "../../etc/passwd",
    [],
    {},
    [[]],
    {"a": 1},
)  # in the place of another


def with_another_value(content: Any, chance: random.Random) -> Any:
    """JSON with one value somewhere in it replaced, removed or added."""
    made = copy.deepcopy(content)
    at: Any = made
    while True:
        key: Any = chance.choice(list(at)) if isinstance(at, dict) else chance.randrange(len(at))
        if isinstance(at[key], (dict, list)) and at[key] and chance.random() < 0.8:
            at = at[key]
            continue
        kind = chance.randrange(4)
        if kind == 0:
            del at[key]
        elif kind == 1 and isinstance(at, list):
            at.append(copy.deepcopy(chance.choice(_VALUES)))
        else:
            at[key] = copy.deepcopy(chance.choice(_VALUES))
        return made
