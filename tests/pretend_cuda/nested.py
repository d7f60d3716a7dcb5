"""Arguments and results of an operation: nested lists and tuples."""

from collections.abc import Callable
from typing import Any


def leaves(value: Any) -> list:
    """What nested lists and tuples hold; torch's own functions for trees take longer than the operations."""
    if not isinstance(value, list | tuple):
        return [value]
    inners = []
    for inner in value:
        if isinstance(inner, list | tuple):
            inners += leaves(inner)
        else:
            inners.append(inner)
    return inners


def mapped(value: Any, change: Callable) -> Any:
    """Nested lists and tuples with each entry changed."""
    return (
        type(value)([mapped(inner, change) for inner in value])
        if isinstance(value, list | tuple)
        else change(value)
    )
