"""Command-line options that several commands share."""

from __future__ import annotations

import argparse
from typing import Any

from ..config import BACKENDS, DTYPES, GRAPHS, ModelConfig
from ..errors import RequestError

COMMON: dict[str, dict[str, Any]] = {
    "model": {"metavar": "MODEL", "nargs": "?", "help": "a model, as for generate; or --shape"},
    "--shape": {"metavar": "NAME", "help": "random weights: smollm2-135m, llama-3.2-1b or llama-3.1-8b"},
    "--backend": {"choices": BACKENDS, "default": "auto", "help": "default: auto"},
    "--graph": {"choices": GRAPHS, "default": "step", "help": "what one graph covers (step)"},
    "--dtype": {"choices": DTYPES, "default": "auto", "help": "default: auto"},
    "--prompt-len": {"type": int, "default": 128, "metavar": "N", "help": "tokens before the first step (128)"},
    "--max-tokens": {"type": int, "default": 128, "metavar": "N", "help": "steps to measure (128)"},
    "--json": {"metavar": "FILE", "help": "write all results to a file"},
}


def add(p: argparse.ArgumentParser, *names: str) -> None:
    """Add these options of COMMON to a command."""
    for name in names:
        p.add_argument(name, **COMMON[name])


def several(p: argparse.ArgumentParser, name: str, default: str) -> None:
    """Add an option whose value is a list of names, separated by commas."""
    p.add_argument(name, default=default, help=f"one or more, separated by commas (default: {default})")


def numbers(text: str) -> tuple[int, ...]:
    """Parse "1,4" as (1, 4)."""
    return tuple(int(part) for part in text.split(","))


def chosen_model(args: argparse.Namespace) -> tuple[str, ModelConfig | None]:
    """(model, None) for MODEL, (name, configuration) for --shape. RequestError unless exactly one is given."""
    from .bench.synthetic import shape

    if (args.model is None) == (args.shape is None):
        raise RequestError(f"expected MODEL or --shape, found {'neither' if args.model is None else 'both'}")
    return args.model or args.shape, shape(args.shape) if args.shape else None
