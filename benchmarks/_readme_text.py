"""How the README is set."""

from __future__ import annotations

import textwrap

__all__ = ["paragraph", "rows_of"]


def paragraph(*sentences: str) -> str:
    return textwrap.fill(" ".join(sentences), 118, break_long_words=False, break_on_hyphens=False)


def rows_of(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
