"""`ostinato embed`: the similarity of texts, or their vectors as JSON."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from ..errors import RequestError
from ..report import print_json

SHOWN = 60  # characters of a text printed beside its row


def add_command(commands: Any, model_options: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add `embed` to the subparsers of `ostinato`. model_options adds MODEL and the options of its backend."""
    p = commands.add_parser(
        "embed", help="vectors of texts", description="How similar texts are by an encoder, or their vectors as JSON."
    )
    model_options(p)
    p.add_argument("text", metavar="TEXT", nargs="+", help="texts to embed")
    p.add_argument(
        "--pooling",
        choices=("mean", "cls"),
        default="mean",
        help="mean of all tokens (default), or the first",
    )
    p.add_argument("--no-normalize", action="store_true", help="with --json: do not scale vectors to length 1")
    p.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the cosines of all pairs, or a JSON object. Returns the exit status."""
    from .. import LLM

    if args.no_normalize and not args.json:
        raise RequestError("--no-normalize: expected --json with it, as similarities need vectors of length 1")
    with LLM(args.model, backend=args.backend, graph=args.graph, dtype=args.dtype, max_len=args.max_len,
             nvtx=args.nvtx) as llm:  # fmt: skip
        began = time.perf_counter()
        vectors = llm.embed(args.text, pooling=args.pooling, normalize=not args.no_normalize)
        ms = (time.perf_counter() - began) * 1e3
        if args.json:
            timings = {"load_s": round(llm.load_s, 3), "embed_ms": round(ms, 3)}
            print_json({"embeddings": vectors.tolist(), "pooling": args.pooling, "backend": llm.backend,
                              "graph": llm.graph, "timings": timings})  # fmt: skip
            return 0
    for text, row in zip(args.text, vectors @ vectors.T, strict=True):
        print(*(f"{cosine:6.3f}" for cosine in row), "", " ".join(text[:SHOWN].split()))
    return 0
