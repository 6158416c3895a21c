"""Random changes that no test can detect, because the kernel computes the same result; each with the reason.

A change is harmless if `text` occurs in its line and its token is `token`. List only survivors that were analysed.
test_random_mutants.py checks that each line still exists.
"""

from __future__ import annotations

from dataclasses import dataclass

from random_mutants import Change


@dataclass(frozen=True)
class Harmless:
    """Changes of `token` in lines of kernels/<file> that contain `text`."""

    file: str
    text: str
    token: str
    why: str

    def covers(self, change: Change) -> bool:
        return change.file == self.file and change.before == self.token and self.text in change.text


HARMLESS = (
    Harmless("columns.cuh", "AHEAD = 4;", "4", "number of loads in flight"),
    Harmless("sample.cu", "AT_ONCE = 8;", "8", "number of loads in flight"),
    Harmless("sample.cu", "if (threadIdx.x == 0) length = 0;", "==", "the other threads write the same 0"),
    Harmless("sample.cu", "<= target && target < upto) {", "<", "at its own end a thread finds no token to write"),
    Harmless("sample.cu", "if (lane == 0 && starts <= target", "==", "the other lanes of the warp write the same"),
    *(
        Harmless("sample.cu", text, sign, f"longer {what} of a row hold the same tokens: only slower")
        for text, what in (
            ("length = (d.size + WARPS - 1) / WARPS;", "stretches"),
            ("each = (length + THREADS - 1) / THREADS", "pieces"),
        )
        for sign in "-/"
    ),
    Harmless("attend_decode.cu", "float scale = sum > 0.f ?", ">", "a row sees a token, and its largest weight is 1"),
    Harmless("attend_prefill.cu", "high = 0;  // union of the ranges", "0", "every row attends to at least one token"),
    Harmless("linear_decode.cu", "cluster_sync();  // the others have begun", ">", "a single block waits for itself"),
    Harmless(
        "sample.cuh", "// the previous call's reads are done", "__syncthreads()",
        "a block_sum or block_max with its own barriers separates any two calls of block_scan in sample.cu",
    ),
    Harmless(
        "attend_decode.cu", "// keeps ptxas from issuing the query's loads first", "__syncwarp()",
        "orders loads into registers for speed; no lane reads what another lane wrote",
    ),
    Harmless("attend_prefill.cu", "PACKED && r > run", ">", "row `run` is of its own sequence: see the branch above"),
    Harmless("attend_decode.cu", "if (p == 0) stats[h]", "0", "all pairs of a head compute the same two numbers"),
    Harmless("epilogue.cuh", "float bias[2], cosine, sine;", "2", "one more element, which nothing reads"),
    Harmless("linear_prefill.cu", "LINE = PAIRS + 2;", "2", "padding against bank conflicts"),
    Harmless("reduce.cuh", "return a > b ? a : b;", ">", "for equal values both results are the same"),
)  # fmt: skip


def harmless(change: Change) -> str:
    """Why a change is harmless; "" if it is not listed."""
    return next((h.why for h in HARMLESS if h.covers(change)), "")
