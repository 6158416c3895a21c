"""The figures of README.md are those of examples/results: its tables, made again from the JSON."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ostinato.errors import TokenizerError
from ostinato.models import families
from ostinato.text import gguf_vocab
from ostinato.weights.blocks import BLOCKS
from ostinato.weights.kinds import PLAIN

ROOT = Path(__file__).resolve().parents[1]
NAMES = {"minilm-l6": "MiniLM-L6", "smollm2-135m": "SmolLM2-135M"}
SHAPES = {"smollm2-135m": "SmolLM2-135M", "llama-3.2-1b": "Llama-3.2-1B", "llama-3.1-8b": "Llama-3.1-8B"}
MODES = ("off", "layer", "step")


def read(name: str) -> Any:
    return json.loads((ROOT / "examples" / "results" / name).read_text(encoding="utf-8"))


def line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def rate(value: float) -> str:
    return f"{value:.{0 if value >= 100 else 1}f}"


def steps() -> Iterator[str]:
    """ms a decode step; of our kernels also the share of the read ceiling."""
    for shape, name in SHAPES.items():
        found = read(f"{shape}.json")
        yield f"ms a decode step, one {found['machine']['device']}, {found['date'][:10]}, bf16"
        for backend, share in (("cuda", " ({percent:.0f} %)"), ("cublas", "")):
            rows = [r for r in found["rows"] if r["backend"] == backend and r["graph"] == "step"]
            yield line(f"{name}, `{backend}`", *(f"{r['step_ms']:.3f}{share.format(**r)}" for r in rows))


def speeds() -> Iterator[str]:
    """Samples a second, the article's first, and how many times one graph a step is as fast as none."""
    found = read("graphs.json")
    rows = {(r["model"], r["batch"], r["graph"]): r["samples_per_s"] for r in found["rows"]}
    for batch, (without, with_) in found["article"].items():
        cells: list[object] = [batch, without, with_, f"{with_ / without:.2f}"]
        for model in NAMES:
            off, layer, step = (rows[model, int(batch), mode] for mode in MODES)
            cells += [rate(off), rate(layer), rate(step), f"**{step / off:.2f}**"]
        yield line(*cells)


def shares() -> Iterator[str]:
    """us of the host, of kernels and of an idle device, and what they are of the wall clock."""
    for r in read("graphs.json")["rows"]:
        if r["batch"] in (1, 16):
            step = r["step"]
            parts = (f"{round(step[f'{k}_us'])} ({round(step[f'{k}_percent'])} %)" for k in ("host", "kernel", "idle"))
            yield line(NAMES[r["model"]], r["batch"], r["graph"], r["launched"], f"{step['wall_us']:.0f}", *parts)


def updates() -> Iterator[str]:
    """us of the host, ms a token."""
    for r in read("update.json")["rows"]:
        times = (f"{r[f'{k}_us']:.0f}" if r[f"{k}_us"] >= 0.5 else "–" for k in ("capture", "change", "launch"))
        yield line(r["way"], *times, f"{r['wall_ms']:.3f}")


def ratios() -> Iterator[str]:
    """How many times, and how long the host is busy, in the text."""
    rows = {(r["model"], r["graph"], r["batch"]): {**r, **r["step"]} for r in read("graphs.json")["rows"]}

    def times(value: str, over: tuple[str, str, int], under: tuple[str, str, int]) -> float:
        return rows[over][value] / rows[under][value]

    gain = [times("samples_per_s", (name, "step", b), (name, "off", b)) for name in NAMES for b in (1, 16)]
    longer = [times("kernel_us", (name, "step", 16), (name, "step", 1)) for name in NAMES]
    faster = [times("wall_us", ("smollm2-135m", "layer", b), ("smollm2-135m", "step", b)) for b in (1, 4, 8, 16)]
    yield "For MiniLM it falls from {:.1f} to {:.1f}, for SmolLM2 from {:.1f} to {:.1f}".format(*gain)
    yield f"{min(longer):.1f} to {max(longer):.1f} times as long as one"
    yield f"{min(faster):.1f} to {max(faster):.1f} times as fast by one graph as by layers"
    busy = [r["change_us"] + r["launch_us"] for r in read("update.json")["rows"][1:3]]
    yield f"for {busy[0]:.0f} and {busy[1]:.0f} us of a step"


def sums() -> Iterator[str]:
    """What stands in the text."""
    probes, inside = read("limits.json"), read("smollm2-135m-inspect.json")
    rows = read("graphs.json")["rows"]
    eager = [r for r in rows if r["graph"] == "off"]
    launch = [r["step"]["host_us"] / r["launched"] for r in eager]
    idle = [r["step"]["idle_percent"] for r in eager]
    apart = max(abs(r["step"]["sum_percent"] - 100) for r in rows)
    yield f"within {apart:.1f} % of the wall clock"
    yield f"{min(launch):.0f} to {max(launch):.0f} us a launch"
    yield f"{min(idle):.0f} to {max(idle):.0f} % of the time"
    count = {v: sum(p["verdict"] == v for p in probes) for v in ("supported", "refused", "wrong")}
    agrees = [p["agrees"] for p in probes]
    yield f"{len(probes)} probes: " + ", ".join(f"{n} {verdict}" for verdict, n in count.items())
    yield f"agrees with {agrees.count(True)} of them, disagrees with {agrees.count(False)}"
    yield (f"{len(inside['nodes'])} nodes add up to {inside['nodes_us']:.1f} us, "
           f"a replay takes {inside['replay_us']:.1f}: {inside['apart']:.1%} apart").replace("%", " %")  # fmt: skip


def another_gpu() -> Iterator[str]:
    """What was measured on an H100: accuracy, decode steps and first tokens of all shapes, samples a second."""
    by = {r["backend"]: r for r in read("smollm2-135m-compare.json")["rows"]}
    assert all(r["device"].startswith("NVIDIA H100") and r["equals_eager"] for r in by.values())
    cuda, cublas = (f"{{perplexity_ratio:.4f}} and {middle}{{mean_kl:.5f}}" for middle in ("mean KL divergence ", ""))
    yield f"{cuda.format(**by['cuda'])} for `cuda`, {cublas.format(**by['cublas'])} for `cublas`"
    found = [read(f"{shape}-h100.json") for shape in SHAPES]
    first = [next(r for r in f["rows"] if (r["backend"], r["graph"]) == ("cuda", "step")) for f in found]
    yield "one NVIDIA H100, {}. So did".format(*{f["date"][:10] for f in found})
    yield "a step takes {:.3f}, {:.3f} and {:.3f} ms".format(*(r["step_ms"] for r in first))
    yield "{:.0f}, {:.0f} and {:.0f} % of what".format(*(r["percent"] for r in first))
    yield "{:.1f}, {:.1f} and {:.1f} ms to its first token".format(*(r["ttft_ms"] for r in first))
    rows = [r for r in read("graphs-h100.json")["rows"] if (r["batch"], r["graph"]) == (1, "step")]
    yield "{:.0f} samples a second of MiniLM and {:.0f} of SmolLM2".format(*(r["samples_per_s"] for r in rows))


@pytest.mark.parametrize(
    "table", [steps, speeds, shares, updates, ratios, sums, another_gpu], ids=lambda table: table.__name__
)
def test_readme_says_what_was_measured(table: Any) -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    missing = [text for text in table() if " ".join(text.split()) not in readme]
    assert missing == []


@pytest.mark.parametrize("file", ["graphs.json", "update.json", "limits.json", "smollm2-135m-inspect.json"])
def test_readme_says_when_and_on_what(file: str) -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## What graphs give")[1].split("\n## ")[0]
    found = read(file)
    stamp = found[0] if isinstance(found, list) else found
    machine, command = stamp["machine"], stamp.get("command", "")
    for wanted in (stamp["date"][:10], machine["device"], machine["driver"], command):
        assert wanted in section


GGUF_ROWS = {
    "architectures": families.GGUF,
    "`tokenizer.ggml.pre`": gguf_vocab.PRE,
    "tensors": [*PLAIN, *BLOCKS],
}


@pytest.mark.parametrize("row", GGUF_ROWS)
def test_readme_says_which_gguf_files_load(row: str) -> None:
    """What is read is the table of the code, no more and no less."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    read = next(text for text in readme.splitlines() if text.startswith(f"| {row} |")).split(" | ")[1]
    assert set(read.replace("`", "").split(", ")) == set(GGUF_ROWS[row])


@pytest.mark.parametrize(
    ("model", "pre"),
    [pytest.param("llama", "default", id="SentencePiece"), pytest.param("gpt2", "qwen35", id="qwen35")],
)
def test_readme_says_which_vocabularies_do_not(model: str, pre: str) -> None:
    """A vocabulary that the README calls refused is refused: whoever makes it load corrects the README."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    refused = next(text for text in readme.splitlines() if text.startswith("| vocabularies |")).split(" | ")[2]
    assert (pre if model == "gpt2" else f"SentencePiece (`{model}`") in refused
    values = {"model": model, "pre": pre, "tokens": ["a"], "token_type": [1], "merges": []}
    with pytest.raises(TokenizerError, match=r"tokenizer\.ggml\.(model|pre): "):
        gguf_vocab.build({f"tokenizer.ggml.{key}": value for key, value in values.items()}, "x.gguf")


def test_the_layer_shown_is_the_one_that_runs() -> None:
    """But for its docstring."""
    source = (ROOT / "engine/models/decoder.py").read_text(encoding="utf-8")
    layer = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == "layer")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = next(part for part in readme.split("```python\n") if part.startswith("def layer("))
    layer.body = layer.body[1:]
    assert ast.dump(ast.parse(shown.partition("```")[0]).body[0]) == ast.dump(layer)
