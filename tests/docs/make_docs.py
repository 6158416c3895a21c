"""Fill the made blocks of all pages: `make docs`, or with --check say which are out of date."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import from_code
import measured
import measured_graphs
import speed_figure
from doc_pages import BLOCK, ROOT, pages, short

FIGURE = ROOT / "docs" / "speed.svg"
MEASURED = (
    measured.speed, measured.decode, measured.decode_h100, measured.quantised, measured.ceilings, measured.first_tokens,
    measured.by_operation, measured.other_engines, measured.other_prompts, measured.published, measured.accuracy,
    measured_graphs.samples, measured_graphs.samples_h100, measured_graphs.shares, measured_graphs.shares_h100,
    measured_graphs.findings, measured_graphs.updates, measured_graphs.limits_summary, measured_graphs.limits,
    measured_graphs.nodes,
)  # fmt: skip
TAKEN = ("llama-3.1-8b.json", "graphs.json", "graphs-h100.json", "update.json", "limits.json",
         "smollm2-135m-inspect.json")  # fmt: skip


def blocks() -> dict[str, Callable[[], Iterator[str]]]:
    """Every block by its name."""
    found = {maker.__name__.replace("_", "-"): maker for maker in MEASURED}
    found |= {f"taken {file}": lambda file=file: iter([measured.taken(file)]) for file in TAKEN}
    return {**found, **dict(from_code.blocks()), "layer": from_code.layer}


def filled(page: str) -> str:
    """The text of a page with every made block made anew. KeyError names a block that nothing makes."""
    makers = blocks()
    return BLOCK.sub(lambda m: m[1] + "".join(f"{text}\n" for text in makers[m["name"]]()) + m[4], page)


def outdated() -> dict[Path, str]:
    """Files that differ from what they should be, with the text they should have."""
    texts = {page: page.read_text(encoding="utf-8") for page in pages()}
    found = {page: made for page, text in texts.items() if (made := filled(text)) != text}
    figure = speed_figure.svg()
    if not FIGURE.exists() or FIGURE.read_text(encoding="utf-8") != figure:
        found[FIGURE] = figure
    return found


def main(*words: str) -> int:
    wrong = outdated()
    for path, text in wrong.items():
        print(f"{short(path)}: {'out of date' if '--check' in words else 'made anew'}")
        if "--check" not in words:
            path.write_text(text, encoding="utf-8")
    return int(bool(wrong) and "--check" in words)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
