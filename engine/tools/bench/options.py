"""Options that several benchmarks share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ...errors import RequestError

if TYPE_CHECKING:
    from ...config import ModelConfig


def numbers(text: str) -> tuple[int, ...]:
    """Parse "1,4" as (1, 4)."""
    return tuple(int(part) for part in text.split(","))


def chosen_model(args: argparse.Namespace) -> tuple[str, ModelConfig | None]:
    """(model, None) for MODEL, (name, configuration) for --shape. RequestError unless exactly one is given."""
    from .synthetic import shape

    if (args.model is None) == (args.shape is None):
        raise RequestError(f"expected MODEL or --shape, found {'neither' if args.model is None else 'both'}")
    return args.model or args.shape, shape(args.shape) if args.shape else None
