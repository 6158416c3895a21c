"""`ostinato bench` on the command line; imports the measuring only when it is asked for."""

from __future__ import annotations

import argparse
from typing import Any

from . import graphs_command, update
from .options import chosen_model, numbers


def add_command(commands: Any) -> None:
    """Add `bench` to the subparsers of `ostinato`."""
    bench = commands.add_parser("bench", help="speed against the limits of the device", description="Measure speed.")
    what = bench.add_subparsers(dest="what", required=True, metavar="WHAT")
    decode = what.add_parser(
        "decode", help="a decode step", description="A decode step by batch size, backend and graph mode."
    )
    _options(decode)
    decode.set_defaults(run=run)
    graphs_command.add_command(what, numbers)
    update.add_command(what)


def _options(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", metavar="MODEL", nargs="?", help="a model, as for generate; or --shape")
    p.add_argument("--shape", metavar="NAME", help="random weights: smollm2-135m, llama-3.2-1b or llama-3.1-8b")
    p.add_argument("--batch", type=numbers, default=(1, 4, 8, 16), metavar="N,N", help="sequences (1,4,8,16)")
    p.add_argument("--backend", default="cuda,cublas", help="which, separated by commas (default: cuda,cublas)")
    p.add_argument("--graph", default="off,layer,step", help="which, separated by commas (default: off,layer,step)")
    p.add_argument("--prompt-len", type=int, default=128, metavar="N", help="tokens before the first step (128)")
    p.add_argument("--max-tokens", type=int, default=128, metavar="N", help="steps that are measured (128)")
    p.add_argument("--dtype", choices=("auto", "bfloat16", "float16", "float32"), default="auto", help="default: auto")
    p.add_argument(
        "--quant",
        default="",
        metavar="KIND",
        help="random weights quantised: q4_0, q4_1, q4_k_m, q5_k_m, q6_k, q8_0 or g128",
    )
    p.add_argument("--no-operations", action="store_true", help="do not time the operations one by one")
    p.add_argument("--json", metavar="FILE", help="write everything to a file")
    p.add_argument("--plot", metavar="FILE", help="draw ms a step to a file: .png, .svg, .pdf (needs the extra plot)")


def run(args: argparse.Namespace) -> int:
    """Measure decode steps, print the tables, write the files; the exit status."""
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
