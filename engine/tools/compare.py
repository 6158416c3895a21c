"""`ostinato compare`: speed and agreement of one model on several backends and graph modes.

Speed is that of LLM.generate, end to end.

Agreement is teacher-forced. Every variant gets the same windows of real text: the first tokens as a prompt, the last
DECODED tokens one by one through its graphs. Its logits are compared with the reference's at every position. The text
is Python's language reference, which every Python carries in pydoc_data.

    max |diff|   largest difference of two logits
    mean KL      KL divergence of the next token's probabilities from the reference's, mean over positions, nats
    same top     share of positions with the same most probable token
    ppl ratio    perplexity of the text, divided by the reference's
    = eager      whether the logits have the bits of graph "off" on the same backend
"""

from __future__ import annotations

import hashlib
import platform
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..config import SamplingParams
from ..errors import RequestError
from ..llm import LLM
from ..report import console, say
from ..text.tokenizer import Tokenizer

PROMPT = 32  # tokens of the prompts whose completions are timed
DECODED = 64  # tokens at the end of a window that are decoded one by one, but at most half of the window
CHUNK = 64  # rows of logits that are compared together, in float64


@dataclass(frozen=True)
class Settings:
    """What to compare. RequestError names the first field that is out of range."""

    model: str
    backends: tuple[str, ...] = ("cuda", "cublas")
    graphs: tuple[str, ...] = ("off", "layer", "step")
    reference: str | None = None  # backend the others are compared with; None = cublas if it runs, else the first
    windows: int = 4  # windows of text; 0 = speed only
    tokens: int = 256  # in a window
    decode: int = 128  # tokens decoded in a timed run
    batch: int = 1  # sequences decoded together in a timed run
    repeats: int = 3  # timed runs; their median counts
    dtype: str = "auto"

    def __post_init__(self) -> None:
        for name, low, high in (("windows", 0, 4096), ("tokens", 2, 2**20), ("decode", 2, 2**20), ("batch", 1, 16)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise RequestError(f"{name}: expected {low} to {high}, found {value}")
        if not self.backends or not self.graphs:
            raise RequestError("backends, graphs: expected at least one of each, found none")

    @property
    def held_against(self) -> str:
        """The reference backend."""
        return self.reference or ("cublas" if "cublas" in self.backends else self.backends[0])


@dataclass
class Tally:
    """How one variant's logits differ from the reference's, summed over positions."""

    positions: int = 0
    scored: int = 0  # positions whose next token is known
    max_diff: float = 0.0
    kl: float = 0.0  # sum of KL(reference || variant), nats
    same_top: int = 0
    nll_reference: float = 0.0
    nll: float = 0.0

    def add(self, reference: np.ndarray, logits: np.ndarray, ids: np.ndarray) -> None:
        """Add one window.  reference, logits [T, V] float32; ids [T], its tokens"""
        for at in range(0, len(ids), CHUNK):
            r, g = (a[at : at + CHUNK].astype(np.float64) for a in (reference, logits))
            self.max_diff = max(self.max_diff, float(np.abs(r - g).max()))
            self.same_top += int((r.argmax(1) == g.argmax(1)).sum())
            log_r, log_g = _log_softmax(r), _log_softmax(g)
            self.kl += float((np.exp(log_r) * (log_r - log_g)).sum())
            following = ids[at + 1 : at + 1 + CHUNK]
            rows = np.arange(len(following))
            self.nll_reference -= float(log_r[rows, following].sum())
            self.nll -= float(log_g[rows, following].sum())
            self.positions += len(r)
            self.scored += len(following)

    def record(self) -> dict[str, float]:
        """Means over positions. Perplexities are over the tokens of the text."""
        return {
            "max_logit_diff": self.max_diff,
            "mean_kl": self.kl / self.positions,
            "same_top": self.same_top / self.positions,
            "perplexity": float(np.exp(self.nll / self.scored)),
            "perplexity_ratio": float(np.exp((self.nll - self.nll_reference) / self.scored)),
        }


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


@dataclass
class Row:
    """One backend in one graph mode."""

    backend: str
    graph: str
    device: str
    dtype: str
    tokens_per_s: float  # all sequences together
    step_ms: float
    graphs: int  # captured
    agreement: dict[str, float] = field(default_factory=dict)  # Tally.record()
    equals_eager: bool | None = None  # logits equal graph "off" of the same backend bit for bit; None: not measured


@dataclass
class Report:
    """The rows of a comparison."""

    settings: Settings
    rows: list[Row] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        rows = [{**{k: v for k, v in asdict(r).items() if k != "agreement"}, **r.agreement} for r in self.rows]
        settings = {**asdict(self.settings), "reference": self.settings.held_against}
        return {"python": platform.python_version(), "settings": settings, "rows": rows}


def text_windows(tokenizer: Tokenizer, count: int, tokens: int) -> list[np.ndarray]:
    """`count` windows of `tokens` ids, evenly spread over Python's language reference, each with a begin token."""
    from pydoc_data.topics import topics

    begin = tokenizer.encode("", bos=True)
    ids = tokenizer.encode("\n".join(topics[name] for name in sorted(topics)), bos=False)
    need = tokens - len(begin)
    if need < 1 or len(ids) < need:
        raise RequestError(f"tokens: expected {len(begin) + 1} to {len(ids)}, found {tokens}")
    starts = np.linspace(0, len(ids) - need, count).astype(int)
    return [np.array([*begin, *ids[at : at + need]]) for at in starts]


def compare(settings: Settings) -> Report:
    """Measure every backend in every graph mode, one loaded model at a time. Progress goes to stderr.

    RequestError names a setting that the model cannot take; DeviceError if a backend does not work."""
    report = Report(settings)
    with tempfile.TemporaryFile() as file:  # reference logits: can be gigabytes
        windows, reference = [], None
        if settings.windows:
            say("compare", f"reference {settings.held_against}")
            with _open(settings, settings.held_against, "off") as llm:
                windows = text_windows(llm.tokenizer, settings.windows, settings.tokens)
                shape = (len(windows), settings.tokens, llm.config.vocab)
                reference = np.memmap(file, np.float32, "w+", shape=shape)
                for i, logits in enumerate(_logits(llm, windows)):
                    reference[i] = logits
        eager: dict[str, str] = {}
        for backend in settings.backends:
            for graph in settings.graphs:
                say("compare", f"{backend}, graph {graph}")
                with _open(settings, backend, graph) as llm:
                    row = _speed(settings, llm)
                    if reference is not None:
                        row.agreement, digest = _agreement(llm, windows, reference)
                        eager.setdefault(backend, digest if graph == "off" else "")
                        row.equals_eager = digest == eager[backend] if eager[backend] else None
                report.rows.append(row)
                say("compare", _summary(row))
        del reference
    return report


def _open(s: Settings, backend: str, graph: str) -> LLM:
    need = max(s.tokens if s.windows else 0, PROMPT + s.decode)
    return LLM(s.model, backend=backend, graph=graph, dtype=s.dtype, max_batch=s.batch, max_len=need, quiet=True,
               prefix_cache=False)  # fmt: skip


def _summary(row: Row) -> str:
    """A row as one line, printed as soon as it is measured: the run may be interrupted before the table."""
    words = [f"{row.backend}, graph {row.graph}: {row.step_ms:.3f} ms per step"]
    words += [f"{name} {row.agreement[name]:.6g}" for name in ("mean_kl", "perplexity_ratio") if name in row.agreement]
    return ", ".join([*words, *(["bits differ from graph off"] if row.equals_eager is False else [])])


def _speed(s: Settings, llm: LLM) -> Row:
    """Decode s.batch prompts together: once to warm up, then s.repeats times."""
    prompts = [w.tolist() for w in text_windows(llm.tokenizer, s.batch, PROMPT)]
    params = SamplingParams(max_tokens=s.decode, ignore_eos=True)
    rates = []
    for _ in range(s.repeats + 1):
        rates.append(statistics.mean(out.decode_tok_s or 0.0 for out in llm.generate(prompts, params)))
    rate = statistics.median(rates[1:])
    return Row(llm.backend, llm.graph, llm.device_name, llm.dtype, rate * s.batch, 1e3 / rate, llm.captured.graphs)


def _logits(llm: LLM, windows: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Logits [T, V] of each window; the last tokens are decoded step by step."""
    for ids in windows:
        yield llm.logits(ids.tolist(), decode_from=len(ids) - min(DECODED, len(ids) // 2))


def _agreement(llm: LLM, windows: list[np.ndarray], reference: np.ndarray) -> tuple[dict[str, float], str]:
    """(Tally.record() against the reference, digest of all bits of the logits)."""
    tally, digest = Tally(), hashlib.blake2b(digest_size=16)
    for ids, expected, logits in zip(windows, reference, _logits(llm, windows), strict=True):
        tally.add(expected, logits, ids)
        digest.update(np.ascontiguousarray(logits).data)
    return tally.record(), digest.hexdigest()


def print_table(report: Report) -> None:
    """Print the report as a table on stdout."""
    from rich.table import Table

    s = report.settings
    devices = ", ".join(dict.fromkeys(r.device for r in report.rows))
    table = Table(title=f"{s.model} on {devices}, batch {s.batch}, compared with {s.held_against}")
    heads = ("backend", "graph", "tokens/s", "ms/step", "max |diff|", "mean KL", "same top", "ppl ratio", "= eager")
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i > 1 else "left")
    for r in report.rows:
        cells = [r.backend, r.graph, f"{r.tokens_per_s:.1f}", f"{r.step_ms:.3f}"]
        if a := r.agreement:
            cells += [f"{a['max_logit_diff']:.4f}", f"{a['mean_kl']:.1e}", f"{a['same_top']:.2%}"]
            cells += [f"{a['perplexity_ratio']:.5f}", {True: "yes", False: "NO", None: ""}[r.equals_eager]]
        table.add_row(*cells)
    console(120).print(table)
