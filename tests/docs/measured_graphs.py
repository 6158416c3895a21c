"""Tables of docs/cuda-graphs.md (what graphs give, what changing them costs, what they hold) and docs/scheduling.md."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

from measured import GRAPHS, MODELS, head, line, read


def _rate(value: float) -> str:
    return f"{value:.{0 if value >= 100 else 1}f}"


def _by(file: str) -> dict[tuple[str, int, str], dict[str, Any]]:
    return {(r["model"], r["batch"], r["graph"]): r for r in read(file)["rows"]}


def samples() -> Iterator[str]:
    """Samples a second, the article's first, and how many times one graph a step is as fast as none."""
    found = _by("graphs.json")
    heads = (c for name in MODELS.values() for c in (f"{name}: off", "layer", "step", "speed-up"))
    yield from head("batch", "article: without", "with", "speed-up", *heads)
    for batch, (without, with_) in read("graphs.json")["article"].items():
        cells: list[object] = [batch, without, with_, f"{with_ / without:.2f}"]
        for model in MODELS:
            off, layer, step = (found[model, int(batch), graph]["samples_per_s"] for graph in GRAPHS)
            cells += [_rate(off), _rate(layer), _rate(step), f"**{step / off:.2f}**"]
        yield line(*cells)


def shares() -> Iterator[str]:
    """us of a step in which the host launches, kernels run, or the device idles."""
    yield from head("model", "batch", "graph", "launches", "wall", "host launching", "kernels", "device idle")
    for r in read("graphs.json")["rows"]:
        if r["batch"] in (1, 16):
            step = r["step"]
            parts = (f"{round(step[f'{k}_us'])} ({round(step[f'{k}_percent'])} %)" for k in ("host", "kernel", "idle"))
            yield line(MODELS[r["model"]], r["batch"], r["graph"], r["launched"], f"{step['wall_us']:.0f}", *parts)


def findings() -> Iterator[str]:
    """The figures that the tables of samples and shares add up to."""
    found = read("graphs.json")["rows"]
    by = _by("graphs.json")

    def ratio(value: str, model: str, over: tuple[int, str], under: tuple[int, str]) -> float:
        a, b = ({**r, **r["step"]} for r in (by[model, over[0], over[1]], by[model, under[0], under[1]]))
        return a[value] / b[value]

    launch = [r["step"]["host_us"] / r["launched"] for r in found if r["graph"] == "off"]
    idle = [r["step"]["idle_percent"] for r in found if r["graph"] == "off"]
    yield f"- An eager launch takes {min(launch):.0f} to {max(launch):.0f} us of the host."
    yield f"- Without graphs the device idles for {min(idle):.0f} to {max(idle):.0f} % of the time."
    for model, name in MODELS.items():
        one, many = (ratio("samples_per_s", model, (b, "step"), (b, "off")) for b in (1, 16))
        yield f"- {name}: the speed-up by one graph falls from {one:.1f} at batch 1 to {many:.1f} at batch 16."
    longer = [ratio("kernel_us", model, (16, "step"), (1, "step")) for model in MODELS]
    yield f"- 16 sequences take the kernels {min(longer):.1f} to {max(longer):.1f} times as long as one."
    faster = [ratio("wall_us", "smollm2-135m", (b, "layer"), (b, "step")) for b in (1, 4, 8, 16)]
    yield f"- A decode step by one graph is {min(faster):.1f} to {max(faster):.1f} times as fast as by layer graphs."
    apart = max(abs(r["step"]["sum_percent"] - 100) for r in found)
    yield f"- Kernel time plus idle time differ from the wall clock by {apart:.1f} % at most."


def updates() -> Iterator[str]:
    """us of the host and ms a token of the ways to change a graph."""
    yield from head("way", "capture, us", "change, us", "launch, us", "ms a step")
    for r in read("update.json")["rows"]:
        times = (f"{r[f'{k}_us']:.0f}" if r[f"{k}_us"] >= 0.5 else "–" for k in ("capture", "change", "launch"))
        yield line(r["way"], *times, f"{r['wall_ms']:.3f}")


def limits_summary() -> Iterator[str]:
    """How many probes, and how often the article agrees."""
    probes = read("limits.json")
    count = {v: sum(p["verdict"] == v for p in probes) for v in ("supported", "refused", "wrong")}
    agrees = [p["agrees"] for p in probes]
    yield f"{len(probes)} probes: " + ", ".join(f"{n} {verdict}" for verdict, n in count.items()) + ". "
    yield f"The article agrees with {agrees.count(True)} of them, disagrees with {agrees.count(False)}, and says "
    yield "nothing of the others."


def limits() -> Iterator[str]:
    """Every probe."""
    yield from head("feature", "what was tried", "this GPU", "article", "agrees")
    for p in read("limits.json"):
        agrees = {True: "yes", False: "**no**", None: "–"}[p["agrees"]]
        yield line(p["feature"], p["asks"], p["verdict"], p["article"] or "–", agrees)


def nodes() -> Iterator[str]:
    """How well the times of the nodes of a graph add up to a replay."""
    inside = read("smollm2-135m-inspect.json")
    yield f"The times of the {len(inside['nodes'])} nodes add up to {inside['nodes_us']:.1f} us; a replay takes "
    yield f"{inside['replay_us']:.1f} us: {inside['apart']:.1%} apart.".replace("%", " %")


def scheduling() -> Iterator[str]:
    """What requests do to one another, in ms: medians."""
    r = read("schedule.json")
    s, middle = r["settings"], {k: median(r[f"{k}_ms"]) for k in ("tail", "cold", "warm", "alone", "between", "gap")}
    yield from head("measured", "ms")
    yield line(f"first token, prompt of {s['tail']} tokens", f"{middle['tail']:.1f}")
    prompt = f"first token, {s['shared']:,} cached tokens and {s['tail']} more"
    yield line(f"{prompt}: cold cache", f"{middle['cold']:.1f}")
    yield line(f"{prompt}: warm cache", f"{middle['warm']:.1f}")
    yield line(f"a step of {s['streams']} streams", f"{r['step_ms']:.2f}")
    yield line(f"longest gap of a stream while a prompt of {s['prompt_len']:,} tokens arrives", f"{middle['gap']:.1f}")
    yield line("first token of that prompt: alone", f"{middle['alone']:.0f}")
    yield line("first token of that prompt: beside the streams", f"{middle['between']:.0f}")
