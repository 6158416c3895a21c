"""docs/speed.svg: ms a token at batch 1 of ostinato and of other engines, a panel a model.

The file is written as text, so no library is needed and the same figures give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

from measured import OTHERS, SHAPES, others, rows

WIDTH, PANEL, LEFT, BAR, GAP, TOP = 900, 240, 210, 18, 8, 58
OURS, THEIRS, TEXT, FAINT = "#0a7d4f", "#9aa5b1", "#1f2933", "#616e7c"


def _times() -> dict[str, list[float]]:
    """Engine -> ms a token, for every shape."""
    ours = {
        "ostinato": [rows(shape, "cuda")[0]["step_ms"] for shape in SHAPES],
        "ostinato with cuBLAS": [rows(shape, "cublas")[0]["step_ms"] for shape in SHAPES],
    }
    theirs = {name: [others(shape, *of)["1"] for shape in SHAPES] for name, of in OTHERS.items()}
    return {name.replace("`", ""): times for name, times in (ours | theirs).items()}


def _text(x: float, y: float, text: str, size: int = 13, fill: str = TEXT, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}"{more}>{text}</text>'


def _panel(at: int, name: str, times: dict[str, float]) -> Iterator[str]:
    x = LEFT + at * (PANEL - 10)
    most = sorted(times.values())[-2]  # the slowest goes beyond the panel
    yield _text(x, TOP - 14, name, 14, TEXT, ' font-weight="bold"')
    for i, (engine, ms) in enumerate(times.items()):
        y, cut = TOP + i * (BAR + GAP), ms > most
        length = (PANEL - 80) * min(ms / most, 1)
        fill = OURS if engine.startswith("ostinato") else THEIRS
        yield f'<rect x="{x}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{fill}"/>'
        if cut:
            yield f'<path d="M{x + length - 14:.1f} {y + BAR} l5 -{BAR} h4 l-5 {BAR} z" fill="#ffffff"/>'
        yield _text(x + length + 5, y + BAR - 5, f"{ms:.3f}" if ms < 10 else f"{ms:.1f}", 12, TEXT)


def svg() -> str:
    """The figure."""
    times = _times()
    height = TOP + len(times) * (BAR + GAP) + 22
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">']
    lines += [f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>']
    lines += [_text(16, 22, "ms a token, batch 1, bf16, one NVIDIA H200 (shorter is better)", 15)]
    for i, engine in enumerate(times):
        weight = ' font-weight="bold"' if engine == "ostinato" else ""
        y = TOP + i * (BAR + GAP) + BAR - 5
        lines.append(_text(LEFT - 10, y, engine, 13, TEXT, f' text-anchor="end"{weight}'))
    for i, name in enumerate(SHAPES.values()):
        lines += _panel(i, name, {engine: found[i] for engine, found in times.items()})
    note = "Random weights of these shapes, prompt 128, 128 tokens. Broken bars are cut. Data: examples/results."
    lines.append(_text(16, height - 8, note, 11, FAINT))
    return "\n".join([*lines, "</svg>", ""])
