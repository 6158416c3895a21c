"""`ostinato bench graphs`: clocks on a simulated device, tables from whole runs, rejected options."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from configs import changed, flat
from emulator import EmulatedDevice

from ostinato.cli import main as cli
from ostinato.config import ModelConfig
from ostinato.errors import DeviceError, RequestError
from ostinato.ops.cuda import CudaOps
from ostinato.ops.device import HostDevice
from ostinato.tools.bench import breakdown, graphs, graphs_report, report, samples, synthetic
from ostinato.tools.bench.ceiling import STEP

FIXTURES = Path(__file__).parent / "fixtures"
TINY = flat(
    layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=96, vocab=80, max_len=256, eps=1e-5,
    tied=True, dtype="float32",
)  # fmt: skip
SMALL = changed(synthetic.shape("minilm-l6"), layers=2, hidden=64, heads=4, kv_heads=4, head_dim=16, ffn=96, vocab=80,
                dtype="float32")  # fmt: skip

# -- what is measured with ---------------------------------------------------------------------------------------------


def test_sentences_are_of_mixed_lengths() -> None:
    texts = samples.sentences()
    words = [len(text.split()) for text in texts]
    assert len(set(texts)) == len(texts) == 64
    assert (min(words), max(words)) == (4, 59)
    for first in range(0, 64, 8):
        batch = words[first : first + 8]
        assert min(batch) < 13 and max(batch) > 23, f"sentences {first} to {first + 7} have {batch} words"


def test_made_up_ids_are_one_a_word_and_mark() -> None:
    a, b = samples.made_up_ids(["The cat, the dog.", "the"], 1000)
    assert len(a) == 6 and a[3] == b[0] and max(a) < 1000
    assert len(samples.made_up_ids(["the"], 1000, around=2)[0]) == 3


class Simulated(HostDevice):
    """A simulated device and host: launches take host time and kernels device time, in parallel. Times in us."""

    def __init__(self, skew: float = 1.0) -> None:
        self.stream, self.host, self.free, self.skew = object(), 0.0, 0.0, skew

    def work(self, host: float, kernel: float, times: int = 1) -> None:
        """Launch kernels; each takes `host` us on the host and `device` us on the device."""
        for _ in range(times):
            self.host += host
            self.free = max(self.free, self.host) + kernel

    def synchronize(self) -> None:
        self.host = max(self.host, self.free)

    def record_event(self) -> float:
        return max(self.host, self.free)

    def elapsed(self, first: float, last: float) -> float:
        self.synchronize()
        return (last - first) * 1e-3 * self.skew


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Simulated:
    device = Simulated()
    monkeypatch.setattr(breakdown, "time", SimpleNamespace(perf_counter=lambda: device.host * 1e-6))
    return device


STEPS = [  # host us per launch, kernel us, launches per step; wall, host, idle us per step
    pytest.param(20, 5, 10, 200, 200, 150, id="eager, the host sets the pace"),
    pytest.param(2, 5, 10, 50, 20, 0, id="many launches, the device sets the pace"),
    pytest.param(10, 50, 1, 50, 10, 0, id="one graph"),
]


@pytest.mark.parametrize(("host", "kernel", "launches", "wall", "in_host", "idle"), STEPS)
def test_a_step_is_broken_down(
    simulated: Simulated, host: float, kernel: float, launches: int, wall: float, in_host: float, idle: float
) -> None:
    steps, reader = 200, SimpleNamespace(read=lambda: simulated.work(5, 400))
    alone = breakdown.kernel_us(simulated, lambda: None, lambda: simulated.work(8, kernel * launches), reader)  # pyright: ignore
    assert alone == pytest.approx(kernel * launches)
    found = breakdown.live(simulated, lambda: None, lambda: simulated.work(host, kernel, launches), steps)
    b = breakdown.account(*found, alone)
    assert b.problem == ""
    assert (b.wall_us, b.host_us) == (pytest.approx(wall, rel=0.01), pytest.approx(in_host))
    assert b.idle_us == pytest.approx(idle, abs=1) and b.kernel_us + b.idle_us == pytest.approx(b.wall_us)
    assert b.host_percent == pytest.approx(100 * in_host / wall, rel=0.01)
    assert b.kernel_percent + b.idle_percent == pytest.approx(b.sum_percent) == pytest.approx(100)


def test_kernel_time_waits_until_the_host_was_fast_enough(simulated: Simulated) -> None:
    reads: list[None] = []
    slow = SimpleNamespace(read=lambda: (reads.append(None), simulated.work(1, 30)))
    launch: Callable[[], None] = lambda: simulated.work(40, 100)  # noqa: E731
    assert breakdown.kernel_us(simulated, lambda: None, launch, slow) == pytest.approx(100)  # pyright: ignore
    assert len(reads) > 40  # single ones were too short, several were not
    never = SimpleNamespace(read=lambda: simulated.work(1, 0.1))
    with pytest.raises(DeviceError, match="found it slower in every attempt"):
        breakdown.kernel_us(simulated, lambda: None, launch, never)  # pyright: ignore


@pytest.mark.parametrize(
    ("wall", "span", "kernel", "problem"),
    [
        pytest.param(100, 96, 60, "", id="holds"),
        pytest.param(100, 104, 108, "", id="kernel-within-tolerance"),
        pytest.param(100, 94, 60, r"kernel \+ idle within 5% of the wall's 100.0 us, found 94.0", id="time-is-missing"),
        pytest.param(100, 106, 60, r"kernel \+ idle within .*, found 106.0 us", id="too-much-time"),
        pytest.param(
            100,
            100,
            106,
            "kernels to take at most the step's 100.0 us, found 106.0 us",
            id="kernel-exceeds-span",
        ),
    ],
)
def test_inconsistent_breakdown_is_reported(wall: float, span: float, kernel: float, problem: str) -> None:
    found = breakdown.account(wall, 10, span, kernel).problem
    assert re.fullmatch(f"expected {problem}.*" if problem else "", found)


# -- whole runs --------------------------------------------------------------------------------------------------------


def settings(*models: tuple[str, ModelConfig | None], **options: Any) -> graphs.Settings:
    small = {"batches": (1, 3), "backend": "numpy", "new_tokens": 3, "repeats": 1, "sentences": 4, "read_bytes": STEP}
    return graphs.Settings(models, **{**small, **options})


def test_numpy_rows_agree_with_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    found = graphs.graphs(settings(("an-encoder", SMALL), ("a-decoder", TINY)))
    assert [(r.model, r.kind, r.batch, r.graph) for r in found.rows] == [
        (name, kind, batch, graph)
        for name, kind in (("an-encoder", "encoder"), ("a-decoder", "decoder"))
        for batch in (1, 3)
        for graph in graphs.MODES
    ]
    for r in found.rows:
        assert r.samples_per_s > 0 and r.ms_per_sample == pytest.approx(1e3 / r.samples_per_s)
        assert r.ms_per_batch == pytest.approx(r.ms_per_sample * 4 / (4 if r.batch == 1 else 2))
        assert (r.graphs > 0) == (r.graph != "off")
        assert r.step.idle_us == 0 < r.step.host_us <= r.step.wall_us  # NumPy works while it is launched
    written = json.loads(json.dumps(graphs_report.record(found)))
    assert [row["samples_per_s"] for row in written["rows"]] == [r.samples_per_s for r in found.rows]
    assert written["models"][1]["tokens"] == [len(i) for i in samples.made_up_ids(samples.sentences()[:4], 80)]
    assert written["article"]["16"] == [1000, 1100] and written["problems"] == found.problems()
    graphs_report.print_tables(found)
    out = capsys.readouterr().out
    assert f"{found.rows[0].samples_per_s:.1f}" in out and "1.50x" in out and "generated tokens" in out


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("config", [SMALL, TINY], ids=["encoder", "decoder"])
def test_every_row_proves_its_path_over_kernels(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breakdown, "REPEATS", 1)
    monkeypatch.setattr(graphs.Embedding, "steps", 2)
    ops = CudaOps(EmulatedDevice(), "bfloat16")
    asked = settings(("tiny", config), backend="cuda", batches=(1,), new_tokens=2, sentences=2)
    found = graphs.graphs(asked, lambda *_: (ops, ""))
    assert [r.graph for r in found.rows] == list(graphs.MODES)
    eager, layer, step = found.rows
    assert (layer.launched, step.launched) == (4, 1) and eager.launched > 10


def test_a_plot_has_titles_and_legends(tmp_path: Path) -> None:
    found = graphs.graphs(settings(("an-encoder", SMALL), ("a-decoder", TINY)))
    found.machine = {"device": "a device"}
    graphs_report.draw(found, str(tmp_path / "found.png"))
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
    figure = graphs_report.painted(found)
    left, right = figure.axes
    assert figure.get_suptitle() == "a device"
    assert (left.get_title(), right.get_title()) == (
        "speed-up by one graph per step",
        "kernels' share of the wall clock",
    )
    names = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in (left, right)]
    assert names == [["an-encoder", "a-decoder", "the article's example"], ["graph off", "graph layer", "graph step"]]
    by_mode = {(r.model, r.batch, r.graph): r for r in found.rows}
    for i, name in enumerate(("an-encoder", "a-decoder")):
        off, _, step = ([by_mode[name, batch, mode] for batch in (1, 3)] for mode in graphs.MODES)
        ratios = [b.samples_per_s / a.samples_per_s for a, b in zip(off, step, strict=True)]
        assert list(left.lines[i].get_ydata()) == ratios
        assert list(right.lines[3 * i].get_ydata()) == [r.step.kernel_percent for r in off]


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        pytest.param(["--batch", "1", "--json", "a/b.json", "--graph", "step"], "--batch 1 --graph step", id="json"),
        pytest.param(["--plot=a/b.png", "a model", "--dot", "a.dot"], "'a model'", id="equals-sign-and-last"),
    ],
)
def test_a_record_has_its_command_without_output_files(words: list[str], kept: str) -> None:
    assert report.command(["bench", "graphs", *words]) == f"ostinato bench graphs {kept}"


# -- the command -------------------------------------------------------------------------------------------------------

OPTIONS = ["--backend", "numpy", "--batch", "1,2", "--graph", "off,step", "--sentences", "2"]


def test_command_measures_a_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    assert cli.main(["bench", "graphs", str(FIXTURES / "bert"), *OPTIONS, "--json", str(file)]) == 0
    out, err = capsys.readouterr()
    assert "speed-up" in out and "batch 2, graph step" in err
    found = json.loads(file.read_text())
    assert [(r["kind"], r["batch"], r["graph"]) for r in found["rows"]] == [
        ("encoder", batch, graph) for batch in (1, 2) for graph in ("off", "step")
    ]
    assert found["models"][0]["weights"] == "float32, checkpoint"
    assert {"date", "command", "version", "machine", "method", "sample"} <= set(found)


def test_command_fails_where_the_breakdown_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breakdown, "live", lambda *_: (100.0, 20.0, 80.0))
    assert cli.main(["bench", "graphs", str(FIXTURES / "bert"), *OPTIONS]) == 1
    out, err = capsys.readouterr()
    assert out.count("FAILED") >= 8 and err.count("the breakdown does not add up: ") == 4


@pytest.mark.parametrize(
    ("args", "says"),
    [
        pytest.param(["--shape", "llama-9"], "shape: expected smollm2-135m or", id="unknown-shape"),
        pytest.param(["--shape", "minilm-l6", "--batch", "1,many"], "--batch", id="not-a-number"),
        pytest.param(["--shape", "minilm-l6", "--batch", "17"], "batch: expected an integer in [1, 16]", id="batch"),
        pytest.param(
            ["--shape", "minilm-l6", "--batch", "4", "--sentences", "3"],
            "batch: expected an integer in [1, 3]",
            id="more-than-sentences",
        ),
        pytest.param(
            ["--shape", "minilm-l6", "--sentences", "65"], "sentences: expected an integer in", id="sentences"
        ),
        pytest.param(["--shape", "minilm-l6", "--graph", "half"], "graph: expected one of", id="graph"),
        pytest.param(["--shape", "minilm-l6", "--backend", "abacus"], "--backend", id="backend"),
        pytest.param(["--shape", "minilm-l6", "--max-tokens", "1"], "new_tokens: expected", id="max-tokens"),
        pytest.param(["no/such/model.gguf"], "model 'no/such/model.gguf'", id="model"),
        pytest.param(["--shape", "minilm-l6", "--json", "no/such/dir.json"], "json: expected a file in", id="json"),
    ],
)
def test_command_refuses(capsys: pytest.CaptureFixture[str], args: list[str], says: str) -> None:
    assert cli.main(["bench", "graphs", *args]) == 2
    assert says in capsys.readouterr().err


def test_nothing_to_measure() -> None:
    with pytest.raises(RequestError, match="at least one of each"):
        settings(("tiny", TINY), graphs=())
