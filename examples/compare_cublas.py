"""Our matrix products against cuBLAS's, eager, by layer graphs and as one graph.

    python examples/compare_cublas.py [MODEL [BACKEND ...]]

The same as `ostinato compare`, as a program to change: other backends, other pieces of text, another batch.
"""

import sys

from ostinato import EngineError
from ostinato.tools.compare import Report, Settings, compare, print_table


def speedup(report: Report) -> str:
    """The fastest row against the slowest, in words."""
    rows = sorted(report.rows, key=lambda r: r.step_ms)
    best, worst = rows[0], rows[-1]
    how = f"{best.backend} with graph {best.graph} is {worst.step_ms / best.step_ms:.2f} times as fast as"
    return f"{how} {worst.backend} with graph {worst.graph}"


def main(model: str = "smollm2-135m", *backends: str) -> int:
    report = compare(Settings(model, backends=backends or ("cuda", "cublas"), windows=2, tokens=64, decode=64))
    print_table(report)
    print(speedup(report))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except EngineError as e:
        sys.exit(f"compare_cublas: {e}")
