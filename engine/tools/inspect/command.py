"""`ostinato inspect` on the command line. The modules that read a graph are imported only when the command runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...report import say
from ..options import add, chosen_model

if TYPE_CHECKING:
    from ..bench.decode import Choose, Settings
    from .step import Step


def add_command(commands: Any) -> None:
    """Add `inspect` to the subparsers of `ostinato`."""
    p = commands.add_parser(
        "inspect", help="the graph of a decode step", description="Show nodes, edges and times of a decode step."
    )
    add(p, "model", "--shape")
    p.add_argument("--batch", type=int, default=1, metavar="N", help="sequences, at most 16 (1)")
    p.add_argument("--graph", choices=("step", "layer"), default="step", help="what one graph covers (step)")
    add(p, "--backend", "--prompt-len", "--dtype")
    p.add_argument("--dot", metavar="FILE", help="write the graph for graphviz")
    p.add_argument("--png", metavar="FILE", help="draw a layer and the time by operation (needs the extra plot)")
    add(p, "--json")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Inspect a step, print it, write the files; return 1 if the node times of a captured graph do not add up."""
    from ...run import load
    from ..bench.decode import Settings
    from ..bench.report import check_outputs, stamp, write_json, writing
    from .dot import dot
    from .table import print_tables, record
    from .timing import TOGETHER, balanced

    name, config = chosen_model(args)
    settings = Settings(name, config, (args.batch,), graphs=(args.graph,), prompt_len=args.prompt_len,
                        max_tokens=4 * TOGETHER, dtype=args.dtype)  # fmt: skip
    check_outputs(args.json, None, dot=args.dot, png=args.png)
    step, machine = open_step(settings, args.backend, load.choose)
    print_tables(step)
    if args.dot:
        with writing(args.dot):
            Path(args.dot).write_text(dot(step), encoding="utf-8")
    if args.json:
        write_json({**stamp(machine), **record(step)}, args.json)
    if args.png:
        from .picture import draw

        draw(step, args.png)
    return int(step.about["captured"] and not balanced(step))


def open_step(s: Settings, backend: str, choose: Choose) -> tuple[Step, dict[str, str]]:
    """(the middle step of the load `s`, description of the machine)."""
    from ..bench.decode import open_model
    from ..bench.session import Session
    from .timing import look

    ops, c, w = open_model(s, backend, choose)
    (batch,), (graph,) = s.batches, s.graphs
    session = Session(ops, c, w, graph, s.load(batch))
    session.prefill()
    say("inspect", f"{ops.name} on {ops.device.name}: timing every node")
    step = look(session)
    step.about = {
        "model": s.model, "backend": ops.name, "device": ops.device.name, "graph": graph, "batch": batch,
        "dtype": ops.dtype.name, "context": s.prompt_len + s.max_tokens // 2,
        "captured": ops.device.is_gpu,
    }  # fmt: skip
    return step, ops.device.about()
