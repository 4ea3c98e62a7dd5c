"""Numbers in what people read: how many of what, and which round of how many."""

from __future__ import annotations

__all__ = ["count_of", "round_of"]


def count_of(number: int | str, one: str, several: str | None = None) -> str:
    """Return a number with its noun: 1 image, 2 images; `several` where that is more than an s at the end."""
    return f"{number} {one if str(number) == '1' else several or f'{one}s'}"


def round_of(number: int, rounds: int) -> str:
    """Return which round it is of so many that train (0: not known); the one after them only measures.

    There are later ones where a federation was told to end sooner than it had come already.
    """
    if number == rounds + 1 and rounds:
        return f"round {number}, the closing measurement"
    return f"round {number} of {rounds}" if number <= rounds else f"round {number}"
