"""Mutation tests: makes one-line mistakes in kernels, one at a time, and checks that the tests catch each.

    python tests/mutants.py                         the mistakes below, each with the tests that must catch it
    python tests/mutants.py --random 40 --seed 1    random changes of operators, bounds, constants and barriers in
                                                    kernels/ (random_mutants.py), with tests that launch the kernel

`make mutants` and `make mutants RANDOM=40 SEED=1` run them; no GPU needed. Works on copies that are laid out as an
installed package, and prints what caught each mistake. Exits with 1 if a mistake below survived or the tests fail on
the unchanged kernels; with --random also if fewer than 95 % were caught.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mutant_runs import Survived, lay_out, lend_cache, run_tests
from random_mutant_runs import run_random


@dataclass(frozen=True)
class Mutant:
    """One mistake: `original`, which occurs once in kernels/<file>, becomes `replacement`."""

    kind: str
    file: str
    original: str
    replacement: str
    tests: tuple[str, ...]  # arguments of pytest


def _quantised(test: str, case: str) -> str:
    """One case of a test of quantised weights, on the emulator."""
    return f"tests/ops/test_quantised.py::test_{test}[emulated-{case}]"


MUTANTS = (
    Mutant(
        "pages that come back to where they were", "pages.cu",
        "uint4* in_host = host + (size_t(places[i])", "uint4* in_host = host + (size_t(pages[i] % 5)",
        ("tests/ops/test_pages.py",),
    ),
    Mutant(
        "the end of a page is not copied", "pages.cu",
        "e < quads; e +=", "e < quads / 256 * 256; e +=",
        ("tests/ops/test_pages.py",),
    ),
    Mutant(
        "a missing barrier", "reduce.cuh",
        "part[threadIdx.x / 32] = v;\n    __syncthreads();\n", "part[threadIdx.x / 32] = v;\n",
        ("tests/ops/test_rows.py",),
    ),
    Mutant(
        "a wrong mask", "reduce.cuh",
        "v = op(v, __shfl_xor_sync(0xffffffffu, v, offset));", "v = op(v, __shfl_xor_sync(0xffffu, v, offset));",
        ("tests/ops/test_rows.py",),
    ),
    Mutant(
        "a bound off by one", "finish.cu",
        "if (column >= n) return;", "if (column > n) return;",
        ("tests/ops/test_cublas.py",),
    ),
    Mutant(
        "a wrong stride", "rope.cu",
        "own = table + size_t(seqs[row]) * pages;", "own = table + size_t(seqs[row]);",
        ("tests/ops/test_rows.py",),
    ),
    Mutant(
        "a wrong index", "pack.cu",
        "g = threadIdx.x / 4 % 8;", "g = threadIdx.x / 4 % 4;",
        ("tests/ops/test_linear.py",),
    ),
    Mutant(
        "a row sees one token too many", "attend_prefill.cu",
        "t >= low[e / 2] && t < high[e / 2]", "t >= low[e / 2] && t <= high[e / 2]",
        ("tests/ops/test_attend_prefill.py",),
    ),
    Mutant(
        "a copy not waited for", "linear_prefill.cu",
        "cp_async_wait<STAGES - 2>();", "cp_async_wait<STAGES - 1>();",
        ("tests/ops/test_linear.py",),
    ),
    Mutant(
        "no wait for the kernel before", "norm.cu",
        "grid_wait();\n    grid_launch();\n    const float* from", "grid_launch();\n    const float* from",
        ("tests/ops/test_rows.py",),
    ),
    Mutant(
        "a k tile used before it is there", "stream.cuh",
        "cp_async_wait<DEPTH - 1>();", "cp_async_wait<DEPTH>();",
        ("tests/ops/test_launches.py",),
    ),
    Mutant(
        "sums read before the other blocks have sent theirs", "linear_decode.cu",
        "if constexpr (SPLIT > 1)\n            cluster_sync();",
        "if constexpr (SPLIT > 8)\n            cluster_sync();",
        ("tests/ops/test_launches.py",),
    ),
    Mutant(
        "x used before all of it is copied", "at_once.cuh",
        "        barrier_wait(COPIED, THREADS);\n", "",
        ("tests/ops/test_launches.py",),
    ),
    Mutant(
        "scales handed on before they are found", "at_once.cuh",
        "        if (squared) find_scales_at_once<T, 16 * TILES_K>(squared, rows, eps, scales);\n"
        "        barrier_arrive(SUMMED, THREADS + 32);\n",
        "        barrier_arrive(SUMMED, THREADS + 32);\n"
        "        if (squared) find_scales_at_once<T, 16 * TILES_K>(squared, rows, eps, scales);\n",
        ("tests/ops/test_launches.py",),
    ),
    Mutant(
        "squares of half of a tile", "epilogue.cuh",
        "int offset = 4; offset < 32; offset *= 2) sum +=", "int offset = 4; offset < 16; offset *= 2) sum +=",
        ("tests/ops/test_half_norm.py",),
    ),
    Mutant(
        "a missing barrier between rounds", "attend_decode.cu",
        "__syncthreads();  // the shared sums are read", "// the shared sums are read",
        ("tests/ops/test_attend_decode.py",),
    ),
    Mutant(
        "a sum of squares left out of the second load", "columns.cuh",
        "(v[1].x + v[1].y + (v[1].z + v[1].w));", "(v[1].x + v[1].y + v[1].z);",
        ("tests/ops/test_half_norm.py::test_scales_of_every_width",),
    ),
    Mutant(
        "a second load of one quad too many", "columns.cuh",
        "v[1] = i + 32 < quads ? line", "v[1] = i + 32 <= quads ? line",
        ("tests/ops/test_half_norm.py::test_scales_of_every_width",),
    ),
    Mutant(
        "tokens of other rows of the sequence read too early", "attend_decode.cu",
        "__reduce_min_sync(0xffffffffu, other == seq ? min(cut.high, its_position) : cut.high);",
        "min(cut.high, __ldcg(positions + row));",
        ("tests/ops/test_attend_decode.py::test_rows_of_one_sequence_wait_for_each_other",),
    ),
    Mutant(
        "a ticket taken before all of the block have written", "attend_decode.cu",
        "before its ticket\n    __syncthreads();\n", "before its ticket\n",
        ("tests/ops/test_attend_decode.py::test_order_of_threads_does_not_matter",),
    ),
    Mutant(
        "a block too many for a full group of query heads", "attend_decode.cu",
        "(group + HEADS - 1) / HEADS", "(group + HEADS) / HEADS",
        ("tests/ops/test_attend_decode.py::test_shapes",),
    ),
    Mutant(
        "the next sequence's page where a row fills its own", "attend_decode.cu",
        "part.start < cut.high ? __ldcg", "part.start <= cut.high ? __ldcg",
        ("tests/ops/test_attend_decode.py::test_full_pages_of_the_last_sequence_of_the_table",),
    ),
    Mutant(
        "a token that no thread draws from", "sample.cu",
        "(length + THREADS - 1) / THREADS", "(length + THREADS - 2) / THREADS",
        ("tests/ops/test_sample.py::test_every_token_can_be_drawn",),
    ),
    Mutant(
        "the smallest term of a weight a little too large", "sample.cuh",
        "1.5403530e-4f", "1.125f * 1.5403530e-4f",
        ("tests/ops/test_sample.py::test_weights_to_their_last_bits",),
    ),
    Mutant(
        "sums in front of their shared memory", "attend_decode.cu",
        "(odd * NT + n) * (D / 16) + i) * LINE", "(odd * NT + n) * (D / 16) - i) * LINE",
        ("tests/ops/test_attend_decode.py::test_shapes",),
    ),
    Mutant(
        "the next step's positions not in memory yet", "elementwise.cu",
        "    __threadfence();\n}", "}",
        ("tests/ops/test_advance.py",),
    ),
    Mutant(
        "a token less where candidates do not fit", "sample.cu",
        "if (order(x) >= bound) sum += weights", "if (order(x) > bound) sum += weights",
        ("tests/ops/test_sample.py::test_neighbouring_floats",),
    ),
    Mutant(
        "of equal logits the last", "sample.cu",
        "<< 32 | (0xffffffffu - v)", "<< 32 | v",
        ("tests/ops/test_sample.py",),
    ),
    Mutant(
        "a spare bit of a code", "quantised.cuh",
        "to[0] = code[i][0] & 15 | code[i][2] << 4", "to[0] = code[i][0] & 31 | code[i][2] << 4",
        (_quantised("packed_without_loss", "u6 g16 nested-rows-49"),),
    ),
    Mutant(
        "a neighbour's scale", "quantised.cuh",
        "acc.sum[r][c], s.scale(0, g), s.scale(1, g), sum);", "acc.sum[r][c], s.scale(1, g), s.scale(0, g), sum);",
        (_quantised("products_round_nothing", "u4 g32"),),
    ),
    Mutant(
        "the scale of a neighbouring group in a batch of one", "quantised.cuh",
        "add(inner[r], s.scale(0, g, own), s.scale(1, g, own), sum);",
        "add(inner[r], s.scale(0, g, 0), s.scale(1, g, 0), sum);",
        (_quantised("bits_do_not_depend_on_the_rows_beside", "u6 g16 nested"),),
    ),
    Mutant(
        "a zero off by one", "quantised.cuh",
        "mma<T>(offset[c], minus(SCALES::ZERO), ", "mma<T>(offset[c], minus(SCALES::ZERO + 1), ",
        (_quantised("products_round_nothing", "s8 g32"),),
    ),
    Mutant(
        "the sign of a min", "quantised.cuh",
        "add(acc, -s.outer(0, 1), -s.outer(1, 1), below);", "add(acc, s.outer(0, 1), s.outer(1, 1), below);",
        (_quantised("products_round_nothing", "u4 g32 nested min"),),
    ),
    Mutant(
        "products not corrected for their zero", "quantised.cuh",
        "float sum[4] = {offset[c][0], offset[c][1], offset[c][2], offset[c][3]};", "float sum[4] = {};",
        (_quantised("products_round_nothing", "u6 g16 nested"),),
    ),
    Mutant(
        "the outer scale of the steps behind", "quantised.cuh",
        "(SHARING - at / K % SHARING) * STEP + g * OUTER;", "SHARING * STEP + g * OUTER;",
        (_quantised("packed_without_loss", "u4 g32 nested min-rows-49"),),
    ),
    Mutant(
        "codes of a row that is not there", "pack.cu",
        "if (i < present)\n", "if (i <= present)\n",
        (_quantised("packed_without_loss", "u4 g32-rows-49"),),
    ),
)  # fmt: skip


def check(mutant: Mutant) -> str:
    """Make the mistake in a copy of the tree and run its tests; return what caught it."""
    with tempfile.TemporaryDirectory() as directory:
        path = lay_out(Path(directory)) / mutant.file
        lend_cache(Path(directory))
        source = path.read_text(encoding="utf-8")
        if source.count(mutant.original) != 1:
            raise Survived(f"{mutant.original!r} occurs {source.count(mutant.original)} times in kernels/{mutant.file}")
        path.write_text(source.replace(mutant.original, mutant.replacement), encoding="utf-8")
        if caught := run_tests(Path(directory), mutant.tests):
            return caught
    raise Survived("all tests passed")


def unchanged() -> str:
    """Run the tests of all mutants on the unchanged kernels; return what failed, or ""."""
    with tempfile.TemporaryDirectory() as directory:
        lay_out(Path(directory))
        return run_tests(Path(directory), sorted({test for mutant in MUTANTS for test in mutant.tests}))


def report(number: int, mutant: Mutant) -> tuple[bool, str]:
    """Check one mutant; return (caught, lines to print)."""
    try:
        verdict, caught = f"caught by {check(mutant)}", True
    except (Survived, subprocess.TimeoutExpired) as e:
        verdict, caught = f"SURVIVED: {e}", False
    change = f"- {mutant.original.strip()}\n+ {mutant.replacement.strip() or '(removed)'}\n{verdict}"
    return caught, f"{number:2}. {mutant.kind}, kernels/{mutant.file}\n" + textwrap.indent(change, "    ")


def main(arguments: list[str] | None = None) -> int:
    """Check that the tests pass, then every mutant, `jobs` at a time."""
    parser = argparse.ArgumentParser(description="Do the tests notice mistakes in kernels?")
    parser.add_argument("--random", type=int, default=0, metavar="N", help="make N random changes instead")
    parser.add_argument("--seed", type=int, default=1, help="which ones")
    parser.add_argument("--jobs", type=int, default=2, help="mistakes at a time")
    parser.add_argument("--seconds", type=float, default=60, help="tests to run on a random change, by their time")
    parser.add_argument("--report", type=Path, help="write what became of each random change to a JSON file")
    chosen = parser.parse_args(arguments)
    if chosen.random:
        return run_random(chosen.random, chosen.seed, chosen.jobs, chosen.seconds, chosen.report)
    if failed := unchanged():
        print(f"the tests fail without any mistake: {failed}")
        return 1
    caught = 0
    with ThreadPoolExecutor(chosen.jobs) as pool:
        for was_caught, lines in pool.map(report, range(1, len(MUTANTS) + 1), MUTANTS):
            print(lines, flush=True)
            caught += was_caught
    print(f"{caught} of {len(MUTANTS)} mistakes caught")
    return 0 if caught == len(MUTANTS) else 1


if __name__ == "__main__":
    sys.exit(main())
