"""`ostinato bench schedule` on the command line. Measuring modules are imported only when a measurement runs."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Any

from ...config import BACKENDS
from ..options import add, chosen_model

if TYPE_CHECKING:
    from .schedule import Report


def add_command(what: Any) -> None:
    """Add `schedule` to the subparsers of `ostinato bench`."""
    p = what.add_parser(
        "schedule", help="how requests affect one another", description="Concurrent requests, shared prefixes, pauses."
    )
    add(p, "model", "--shape")
    p.add_argument("--backend", choices=BACKENDS[1:], default="cuda", help="default: cuda")
    add(p, "--graph", "--dtype")
    p.add_argument("--streams", type=int, default=16, metavar="N", help="streams that decode meanwhile (16)")
    p.add_argument("--prompt-len", type=int, default=8192, metavar="N", help="tokens of the long prompt (8192)")
    p.add_argument("--shared", type=int, default=4096, metavar="N", help="tokens of a shared prefix (4096)")
    p.add_argument("--tail", type=int, default=64, metavar="N", help="tokens after the prefix (64)")
    p.add_argument("--repeats", type=int, default=5, metavar="N", help="number of measurements (5)")
    p.add_argument("--gpu-memory", type=float, metavar="X", help="as for LLM: a share of the device, or GB")
    add(p, "--json")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, write the file; return the exit status."""
    from .report import check_outputs, stamp, write_json
    from .schedule import Settings, schedule

    name, config = chosen_model(args)
    settings = Settings(
        model=name,
        config=config,
        backend=args.backend,
        graph=args.graph,
        dtype=args.dtype,
        streams=args.streams,
        prompt_len=args.prompt_len,
        shared=args.shared,
        tail=args.tail,
        repeats=args.repeats,
        gpu_memory=args.gpu_memory,
    )
    check_outputs(args.json, None)
    found = schedule(settings)
    print_table(found)
    if args.json:
        record = asdict(found)
        record["settings"].pop("config")
        write_json({**stamp(found.machine), **record}, args.json)
    return 0


def print_table(report: Report) -> None:
    """Print one line per measurement on stdout."""
    from rich.table import Table

    from .report import stdout

    r, s = report, report.settings
    table = Table(title=f"{s.model} on {r.machine['device']}, {s.backend}, {s.streams} streams")
    for i, head in enumerate(("what", "median", "worst", "unit")):
        table.add_column(head, justify="right" if i in (1, 2) else "left", no_wrap=True)
    table.add_row("concurrent requests without max_tokens", str(r.running), "", f"of {s.streams}")
    for what, found in (
        (f"first token, prompt of {s.tail}", r.tail_ms),
        (f"first token, {s.shared} shared + {s.tail}, cold", r.cold_ms),
        (f"first token, {s.shared} shared + {s.tail}, warm", r.warm_ms),
        ("between two tokens of a stream", [r.step_ms]),
        (f"longest pause of a stream during a prompt of {s.prompt_len}", r.gap_ms),
        (f"first token, prompt of {s.prompt_len}, alone", r.alone_ms),
        (f"first token, prompt of {s.prompt_len}, with the streams", r.between_ms),
    ):
        table.add_row(what, f"{median(found):.2f}", f"{max(found):.2f}", "ms")
    console = stdout()
    console.print(table)
    warm, between = median(r.warm_ms) - median(r.tail_ms), median(r.between_ms) / median(r.alone_ms)
    console.print(f"{r.memory}\nwarm takes {warm:.2f} ms more than the tail alone; with the streams the prompt takes "
                  f"{between:.2f} times as long as alone.")  # fmt: skip
