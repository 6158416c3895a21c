"""`ostinato bench` on the command line. Measuring modules are imported only when a measurement runs."""

from __future__ import annotations

import argparse
from typing import Any

from ..options import add, chosen_model, numbers, several
from . import check, graphs_command, schedule_command, update


def add_command(commands: Any) -> None:
    """Add `bench` to the subparsers of `ostinato`."""
    bench = commands.add_parser("bench", help="speed against the limits of the GPU", description="Measure speed.")
    what = bench.add_subparsers(dest="what", required=True, metavar="WHAT")
    decode = what.add_parser(
        "decode", help="a decode step", description="Time a decode step by batch size, backend and graph mode."
    )
    _options(decode)
    decode.set_defaults(run=run)
    graphs_command.add_command(what)
    schedule_command.add_command(what)
    update.add_command(what)
    check.add_command(what)


def _options(p: argparse.ArgumentParser) -> None:
    add(p, "model", "--shape")
    p.add_argument("--batch", type=numbers, default=(1, 4, 8, 16), metavar="N,N", help="sequences (1,4,8,16)")
    several(p, "--backend", "cuda,cublas")
    several(p, "--graph", "off,layer,step")
    add(p, "--prompt-len", "--max-tokens", "--dtype")
    p.add_argument("--quant", default="", metavar="KIND", help="random weights quantised: q4_0, q4_k_m, g128, ...")
    p.add_argument("--no-operations", action="store_true", help="do not time single operations")
    add(p, "--json")
    p.add_argument("--plot", metavar="FILE", help="plot ms per step: .png, .svg or .pdf (needs the extra plot)")


def run(args: argparse.Namespace) -> int:
    """Measure decode steps, print the tables, write the files; return the exit status."""
    from . import report
    from .decode import Settings, decode

    name, config = chosen_model(args)
    settings = Settings(
        model=name,
        config=config,
        batches=args.batch,
        backends=tuple(args.backend.split(",")),
        graphs=tuple(args.graph.split(",")),
        prompt_len=args.prompt_len,
        max_tokens=args.max_tokens,
        dtype=args.dtype,
        quant=args.quant,
        operations=not args.no_operations,
    )
    report.check_outputs(args.json, args.plot)
    found = decode(settings)
    report.print_tables(found)
    report.keep(args, found, report.record, report.draw)
    return 0
