"""Random changes that no test can miss, because what the kernel computes is the same: which, and why.

A change is harmless if `text` occurs in its line and its token is `token`. Only what was looked at after it survived
belongs here; test_random_mutants.py checks that each line still exists.
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
    Harmless("columns.cuh", "AHEAD = 4;", "4", "how many loads are on their way at once"),
    Harmless("sample.cu", "AT_ONCE = 8;", "8", "how many loads are on their way at once"),
    Harmless("sample.cu", "if (threadIdx.x == 0) length = 0;", "==", "the other threads write the same 0"),
    Harmless("sample.cu", "<= target && target < upto) {", "<", "at its own end a thread finds no token to write"),
    Harmless("sample.cu", "if (lane == 0 && starts <= target", "==", "the other lanes of the warp write the same"),
    *(
        Harmless("sample.cu", text, sign, f"longer {what} of a row hold the same tokens: it only takes longer")
        for text, what in (
            ("length = (d.size + WARPS - 1) / WARPS;", "stretches"),
            ("each = (length + THREADS - 1) / THREADS", "pieces"),
        )
        for sign in "-/"
    ),
    Harmless("attend_decode.cu", "float scale = sum > 0.f ?", ">", "a row sees a token, and its largest weight is 1"),
    Harmless("attend_prefill.cu", "high = 0;  // what any row", "0", "every row sees a token at least"),
    Harmless("linear_decode.cu", "cluster_sync();  // the others have begun", ">", "a block alone waits for itself"),
    Harmless(
        "sample.cuh", "// the reads of the last call are done", "__syncthreads()",
        "between any two calls of block_scan in sample.cu stands a block_sum or block_max, with barriers of its own",
    ),
    Harmless(
        "attend_decode.cu", "// keeps ptxas from asking for the query first", "__syncwarp()",
        "orders loads into registers for speed; no lane reads there what another one wrote",
    ),
    Harmless("attend_prefill.cu", "PACKED && r > run", ">", "row `run` is one of its own sequence: the branch before"),
    Harmless("attend_decode.cu", "if (p == 0) stats[h]", "0", "all pairs of a head have found the same two numbers"),
    Harmless("epilogue.cuh", "float bias[2], cosine, sine;", "2", "one element more, which nothing reads"),
    Harmless("linear_prefill.cu", "LINE = PAIRS + 2;", "2", "padding against bank conflicts"),
    Harmless("reduce.cuh", "return a > b ? a : b;", ">", "of two equal values either will do"),
)  # fmt: skip


def harmless(change: Change) -> str:
    """Why a change is harmless; empty if nobody has said so."""
    return next((h.why for h in HARMLESS if h.covers(change)), "")
