"""The tables of measurements: Markdown lines made from the JSON files of examples/results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from doc_pages import ROOT

SHAPES = {"smollm2-135m": "SmolLM2-135M", "llama-3.2-1b": "Llama-3.2-1B", "llama-3.1-8b": "Llama-3.1-8B"}
MODELS = {"minilm-l6": "MiniLM-L6", "smollm2-135m": "SmolLM2-135M"}
BATCHES = (1, 4, 8, 16)
GRAPHS = ("off", "layer", "step")
QUANTISED = {"q4_0": "Q4_0", "g128": "4 bits, groups of 128 (`g128`), the LM head bf16"}  # file of the 8B -> name
# The engines of the comparison at batch 1: what begins the name in others-h200.json, and the settings.
OTHERS = {
    "llama.cpp": ("llama.cpp", "CUDA graphs"),
    "vLLM": ("vLLM", ("full CUDA graphs", "bfloat16")),
    "transformers, `torch.compile`": ("transformers", "static cache"),
    "transformers, eager": ("transformers", "eager"),
}


def read(name: str) -> Any:
    """A file of examples/results."""
    return json.loads((ROOT / "examples" / "results" / name).read_text(encoding="utf-8"))


def line(*cells: object) -> str:
    """A row of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def head(*cells: object) -> Iterator[str]:
    """The first row, and the line below it."""
    yield line(*cells)
    yield line(*["---"] * len(cells)).replace(" ", "")


def rows(shape: str, backend: str, graph: str = "step", card: str = "") -> list[dict[str, Any]]:
    """The rows of a run of `bench decode`, by batch. card: "" the H200, "-h100"."""
    return [r for r in read(f"{shape}{card}.json")["rows"] if (r["backend"], r["graph"]) == (backend, graph)]


def others(shape: str, engine: str, settings: str | tuple[str, ...]) -> dict[str, float]:
    """ms a step by batch of another engine: the fastest of its runs in 16 bits on one GPU."""
    runs = (r for run in read("others-h200.json")["runs"] for r in run["rows"] if r["shape"] == shape)
    same = (r for r in runs if r["engine"].startswith(engine) and r["settings"].startswith(settings))
    found = [r["step_ms"] for r in same if "two" not in r["settings"]]
    return {batch: min(f[batch] for f in found if batch in f) for batch in found[0]}


def taken(file: str) -> str:
    """When, on what, by which command a file was made."""
    found = read(file)
    first = found[0] if isinstance(found, list) else found
    machine = first["machine"]
    command = f", `{first['command']}`" if "command" in first else ""
    return f"One {machine['device']}, driver {machine['driver']}, {first['date'][:10]}{command}."


def speed() -> Iterator[str]:
    """ms a token at batch 1, beside other engines."""
    ours, found = read("llama-3.1-8b.json"), read("others-h200.json")
    dates = " and ".join(run["date"] for run in found["runs"])
    assert ours["machine"]["device"] == found["machine"]["device"]
    yield f"One {ours['machine']['device']}, bf16, random weights, prompt 128, 128 tokens decoded; ostinato on "
    yield f"{ours['date'][:10]}, the others on {dates}. In brackets: the share of the GPU's measured read bandwidth."
    yield ""
    yield from head("ms a token, batch 1", *SHAPES.values())
    steps = [rows(shape, "cuda")[0] for shape in SHAPES]
    yield line("**ostinato**", *(f"**{r['step_ms']:.3f}** ({r['percent']:.0f} %)" for r in steps))
    yield line("ostinato with cuBLAS", *(f"{rows(shape, 'cublas')[0]['step_ms']:.3f}" for shape in SHAPES))
    for name, (engine, settings) in {**OTHERS, "cuBLAS, the GEMMs alone in one graph": ("cuBLAS", "in one")}.items():
        yield line(name, *(f"{others(shape, engine, settings)['1']:.3f}" for shape in SHAPES))


def decode(card: str = "") -> Iterator[str]:
    """ms a decode step by batch; of our kernels also the share of the read ceiling."""
    found = read(f"{'llama-3.1-8b'}{card}.json")
    date, device = found["date"][:10], found["machine"]["device"]
    yield f"One {device}, {date}, bf16, prompt 128, tokens 129 to 256, greedy, one graph a step."
    yield ""
    yield from head("shape, random weights", *(f"batch {b}" for b in BATCHES))
    for shape, name in SHAPES.items():
        ours = (f"{r['step_ms']:.3f} ({r['percent']:.0f} %)" for r in rows(shape, "cuda", card=card))
        yield line(f"{name}, `cuda`", *ours)
        yield line(f"{name}, `cublas`", *(f"{r['step_ms']:.3f}" for r in rows(shape, "cublas", card=card)))


def decode_h100() -> Iterator[str]:
    """The same on an H100."""
    yield from decode("-h100")


def quantised() -> Iterator[str]:
    """ms a decode step of the 8B with weights of 4 bits, by batch."""
    runs = {name: read(f"llama-3.1-8b-{kind}.json") for kind, name in QUANTISED.items()}
    (device,) = {found["machine"]["device"] for found in runs.values()}
    (date,) = {found["date"][:10] for found in runs.values()}
    yield f"One {device}, {date}, random weights of Llama-3.1-8B, prompt 128, tokens 129 to 256, one graph a step."
    yield ""
    yield from head("weights", "GB a step", *(f"batch {b}" for b in BATCHES))
    for name, found in runs.items():
        made = [r for r in found["rows"] if r["backend"] == "cuda"]
        times = (f"{r['step_ms']:.3f} ({r['percent']:.0f} %)" for r in made)
        yield line(name, f"{made[0]['bytes'] / 1e9:.1f}", *times)


def ceilings() -> Iterator[str]:
    """What each GPU reaches when it only reads."""
    for card in ("", "-h100"):
        found = read(f"llama-3.1-8b{card}.json")
        yield f"- {found['machine']['device']}: {found['ceiling_gb_per_s']['cuda']:.0f} GB/s"


def first_tokens() -> Iterator[str]:
    """ms to the first token, on the H100."""
    found = read("llama-3.1-8b-h100.json")
    yield f"One {found['machine']['device']}, {found['date'][:10]}, bf16, the same runs as above."
    yield ""
    yield from head("prompt of 128 tokens, batch 1", *SHAPES.values())
    for backend in ("cuda", "cublas"):
        found = (rows(shape, backend, card="-h100")[0] for shape in SHAPES)
        yield line(f"`{backend}`", *(f"{r['ttft_ms']:.1f}" for r in found))


def by_operation() -> Iterator[str]:
    """Where a decode step of the 8B goes: time of each kind of operation, timed as a chain of its own."""
    found = read("llama-3.1-8b.json")
    yield from head("operation", "calls", "us a call, batch 1", "% of the ceiling", "us a call, batch 16", "%")
    kinds = [r for r in found["operations"] if (r["backend"], r["batch"]) == ("cuda", 1)]
    many = {r["kind"]: r for r in found["operations"] if (r["backend"], r["batch"]) == ("cuda", 16)}
    for r in kinds:
        both = (r, many[r["kind"]])
        cells = (
            c
            for x in both
            for c in (f"{x['us']:.1f}", f"{x['percent']:.0f}" if x["percent"] and x["bytes"] > 1e6 else "–")
        )
        yield line(r["kind"], r["calls"], *cells)


def other_engines() -> Iterator[str]:
    """Every run of other engines, beside ours of the same days."""
    yield from head("date", "shape", "engine", "settings", *(f"batch {b}" for b in BATCHES))
    for run in read("others-h200.json")["runs"]:
        for r in sorted(run["rows"], key=lambda r: list(SHAPES).index(r["shape"])):
            times = (f"{r['step_ms'][str(b)]:.3f}" if str(b) in r["step_ms"] else "–" for b in BATCHES)
            yield line(run["date"], SHAPES[r["shape"]], r["engine"], r["settings"].replace('"', "`"), *times)


def other_prompts() -> Iterator[str]:
    """ms to the first token and seconds to start, of those that were measured."""
    lengths = ("128", "2048", "16384")
    yield from head("shape", "engine", "settings", *(f"{int(n):,} tokens" for n in lengths), "start, s")
    for run in read("others-h200.json")["runs"]:
        for r in run["rows"]:
            if first := r.get("ttft_ms", {}):
                cells = (f"{first[n]:g}" if n in first else "–" for n in lengths)
                yield line(
                    SHAPES[r["shape"]], r["engine"], r["settings"].replace('"', "`"), *cells, r.get("start_s", "–")
                )


def published() -> Iterator[str]:
    """What others have published for the same GPU."""
    for r in read("others-h200.json")["published"]:
        yield f"- {SHAPES[r['shape']]}, {r['engine']}: {r['step_ms']['1']:.3f} ms a step at batch 1 ({r['source']})."


def accuracy() -> Iterator[str]:
    """How far the backends are from float32 on NumPy."""
    yield from head("backend", "graph", "perplexity ratio", "mean KL, nats", "same top token", "bits of graph `off`")
    for r in read("smollm2-135m-compare.json")["rows"]:
        same = {True: "yes", False: "**no**", None: "–"}[r["equals_eager"]]
        kl, top = f"{r['mean_kl']:.5f}", f"{r['same_top']:.2%}"
        yield line(f"`{r['backend']}`", r["graph"], f"{r['perplexity_ratio']:.4f}", kl, top, same)
