"""Our GEMMs against cuBLAS's, each launched kernel by kernel, by one graph a layer, and by one graph a step.

    python examples/compare_cublas.py [MODEL [BACKEND ...]]

The same as `ostinato compare`, as a program to change: take other backends, other texts, another batch. Of each row it
prints how fast it is and how far its logits are from the reference's; "= eager" says whether the graph gives the same
bits as kernels launched one by one.
"""

import sys

from ostinato import EngineError
from ostinato.tools.compare import Report, Settings, compare, print_table

BACKENDS = ("cuda", "cublas")


def speedup(report: Report) -> str:
    """The fastest row against the slowest, in words."""
    rows = sorted(report.rows, key=lambda row: row.step_ms)
    fast, slow = rows[0], rows[-1]
    times = slow.step_ms / fast.step_ms
    return (
        f"{fast.backend} with graph {fast.graph} is {times:.2f} times as fast as {slow.backend} with graph {slow.graph}"
    )


def main(model: str = "smollm2-135m", *backends: str) -> int:
    settings = Settings(
        model,
        backends=backends or BACKENDS,
        windows=2,  # pieces of text on which logits are compared
        tokens=64,  # tokens in a piece
        decode=64,  # tokens decoded to measure speed
    )
    report = compare(settings)
    print_table(report)
    print(speedup(report))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except EngineError as e:
        sys.exit(f"compare_cublas: {e}")
