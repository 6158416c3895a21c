"""`ostinato bench graphs` on the command line. Measuring modules are imported only when a measurement runs."""

from __future__ import annotations

import argparse
from typing import Any

from ...report import say
from ..options import add, numbers, several

DEFAULT = ("minilm-l6", "smollm2-135m")  # an encoder and a decoder


def add_command(what: Any) -> None:
    """Add `graphs` to the subparsers of `ostinato bench`."""
    p = what.add_parser(
        "graphs", help="what CUDA graphs gain", description="Samples/s with and without graphs, and a breakdown."
    )
    p.add_argument("model", metavar="MODEL", nargs="*", help=f"models, as for generate (default: {' '.join(DEFAULT)})")
    p.add_argument("--shape", metavar="NAME,NAME", help="random weights instead: minilm-l6, smollm2-135m, ...")
    p.add_argument("--batch", type=numbers, default=(1, 4, 8, 16), metavar="N,N", help="samples per batch (1,4,8,16)")
    p.add_argument("--backend", choices=("cuda", "cublas", "numpy"), default="cuda", help="default: cuda")
    several(p, "--graph", "off,layer,step")
    p.add_argument("--max-tokens", type=int, default=32, metavar="N", help="tokens a decoder adds to a sentence (32)")
    p.add_argument("--sentences", type=int, default=64, metavar="N", help="how many of the 64 sentences (64)")
    add(p, "--dtype", "--json")
    p.add_argument(
        "--plot", metavar="FILE", help="plot speed-ups and shares: .png, .svg or .pdf (needs the extra plot)"
    )
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print the tables, write the files; return 1 if the breakdown of a row is inconsistent."""
    from . import graphs_report, report
    from .graphs import Settings, graphs
    from .synthetic import shape

    shapes = args.shape.split(",") if args.shape else []
    names = args.model or ([] if shapes else DEFAULT)
    settings = Settings(
        models=tuple([(name, None) for name in names] + [(name, shape(name)) for name in shapes]),
        batches=args.batch,
        backend=args.backend,
        graphs=tuple(args.graph.split(",")),
        new_tokens=args.max_tokens,
        dtype=args.dtype,
        sentences=args.sentences,
    )
    report.check_outputs(args.json, args.plot)
    found = graphs(settings)
    graphs_report.print_tables(found)
    report.keep(args, found, graphs_report.record, graphs_report.draw)
    for problem in found.problems():
        say("ostinato", f"the breakdown does not add up: {problem}")
    return 1 if found.problems() else 0
