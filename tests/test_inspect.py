"""`ostinato inspect`: the operation of each node, equal layers, the output files, and whole runs on NumPy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ostinato.cli import main as cli
from ostinato.errors import CaptureError
from ostinato.graph.capture import Call, Graph
from ostinato.graph.cuda_graph import Edge, Fact, Opened, readable
from ostinato.tools.inspect import table
from ostinato.tools.inspect.dot import dot
from ostinato.tools.inspect.group import by_operation, groups
from ostinato.tools.inspect.step import Node, Step, arrays, matrices, opened, operation
from ostinato.tools.inspect.timing import balanced

LLAMA = str(Path(__file__).parent / "fixtures" / "llama")
DOWN = np.zeros((8, 16), np.float32)


def graph(*calls: tuple[str, str, int], args: tuple = ()) -> Graph:
    """A captured graph from (part, operation, number of nodes)."""
    ops: Any = None
    return Graph(ops, [Call(part, name, args, {}, nodes) for part, name, nodes in calls])


def kernels(*names: str, early: bool = True) -> Opened:
    """A chain of kernels, as the driver would describe it."""
    facts = [Fact("kernel", name, (3, 1, 1), (64, 1, 1), 512, 40) for name in names]
    return Opened(facts, [Edge(i, i + 1, early) for i in range(len(names) - 1)])


def test_a_node_is_of_the_operation_that_added_it() -> None:
    made = graph(("embed", "embed", 1), ("layer 0", "norm_qkv", 2), ("layer 0", "nothing", 0), ("head", "advance", 1))
    nodes, edges = opened([made], [kernels("e", "norm", "qkv", "a")], {})
    assert [(n.part, n.operation, n.name) for n in nodes] == [
        ("embed", "embed", "e"), ("layer 0", "norm_qkv", "norm"), ("layer 0", "norm_qkv", "qkv"),
        ("head", "advance", "a"),
    ]  # fmt: skip
    assert edges == [Edge(0, 1, True), Edge(1, 2, True), Edge(2, 3, True)]


def test_nodes_of_several_graphs_are_numbered_on() -> None:
    made = [graph(("layer 0", "attend", 2)), graph(("layer 1", "attend", 2))]
    nodes, edges = opened(made, [kernels("a", "b"), kernels("a", "b", early=False)], {})
    assert [n.graph for n in nodes] == [0, 0, 1, 1] and edges == [Edge(0, 1, True), Edge(2, 3, False)]


def test_a_node_without_an_operation_is_an_error() -> None:
    with pytest.raises(CaptureError, match="graph 0: expected the 1 nodes that its operations added, found 2"):
        opened([graph(("embed", "embed", 1))], [kernels("e", "stray")], {})


def test_gemms_are_distinguished_by_their_weight() -> None:
    names = matrices(SimpleNamespace(layers=[SimpleNamespace(down=DOWN, q_norm=None)]))
    product = Call("layer 0", "linear", (np.zeros((2, 16)), DOWN, np.zeros((2, 8))), {"residual": np.zeros((2, 8))})
    assert (
        operation(product, names) == "linear down"
        and operation(replace(product, name="norm_head"), names) == "norm_head"
    )
    assert arrays(product) == "x [2, 16], weight [8, 16], out [2, 8], residual [2, 8]"
    packed = replace(product, args=(product.args[0], SimpleNamespace(n=8, k=16)), kwargs={"bias": None})
    assert arrays(packed) == "x [2, 16], weight [8, 16]"


@pytest.mark.parametrize(
    ("compiled", "shown"),
    [
        ("_Z7advancePKiS0_PiS1_S1_ii", "advance"),
        ("_ZN7cutlass7Kernel2I13some_long_nameEEvNT_6ParamsE", "cutlass::Kernel2"),
        ("nvjet_tst_64x8_64x16", "nvjet_tst_64x8_64x16"),
        ("_Zxyz", "_Zxyz"),
    ],
)
def test_names_of_compiled_kernels_are_readable(compiled: str, shown: str) -> None:
    assert readable(compiled) == shown


def step(layers: int = 3, replay: float = 0.0) -> Step:
    """embed 1 us; in layer i attend i + 1 us and linear 2 us; advance 1 us."""
    chain = [Node("kernel", "embed<bf16>", "embed", "embed", (1, 1, 1), (128, 1, 1), us=1)]
    for i in range(layers):
        chain += [
            Node(
                "kernel", "attend_decode<bf16, 64>", f"layer {i}", "attend", (2, 3, 1), (256, 1, 1), 4096, 90, us=i + 1
            ),
            Node("kernel", 'odd"name', f"layer {i}", "linear o", (18, 1, 1), (384, 1, 1), us=2),
        ]
    chain.append(Node("kernel", "advance", "head", "advance", (1, 1, 1), (256, 1, 1), us=1))
    edges = [Edge(i, i + 1, i > 0) for i in range(len(chain) - 1)]
    about = {"model": "m", "device": "d", "backend": "cuda", "batch": 1, "graph": "step", "captured": True}
    made = Step(chain, edges, 1, 2_500_000, about=about)
    made.replay_us = replay or made.total_us
    return made


def test_equal_layers_are_one_group_with_mean_times() -> None:
    found = groups(step().nodes)
    assert [g.name for g in found] == ["embed", "layers 0 to 2", "head"]
    assert [n.us for n in found[1].mean()] == [2, 2] and [n.us for n in found[1].first] == [1, 2]
    assert {name: len(nodes) for name, nodes in by_operation(step().nodes).items()} == {
        "embed": 1, "attend": 3, "linear o": 3, "advance": 1,
    }  # fmt: skip


def test_a_layer_of_another_kernel_stands_alone() -> None:
    made = step()
    made.nodes[3] = replace(made.nodes[3], name="attend_decode<bf16, 128>")
    assert [g.name for g in groups(made.nodes)] == ["embed", "2 layers: 0, 2", "layer 1", "head"]


@pytest.mark.parametrize(
    ("replay", "holds", "says"),
    [(14.0, True, "0.0% apart, within 5%"), (14.7, True, "within 5%"), (13.0, False, "MORE than 5%"),
     (15.0, False, "6.7% apart, which is MORE than 5%")],
)  # fmt: skip
def test_times_are_held_against_a_replay(replay: float, holds: bool, says: str) -> None:
    made = step(replay=replay)
    assert made.total_us == 14 and balanced(made) == holds
    assert says in list(table.lines(made))[-1]


def test_the_table_shows_one_layer_in_full_and_the_others_by_operation(capsys: pytest.CaptureFixture[str]) -> None:
    table.print_tables(step())
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "layer 0 attend attend_decode<bf16, 64> 2 x 3 256 4096 90 end 1.00 7.1" in out
    assert 'linear o odd"name 18 384 early 2.00 14.3' in out
    assert "layers 1 to 2, each attend 2.50 17.9 linear o 2.00 14.3" in out
    assert "attend 3 2.00 6.00 42.9" in out  # of the whole step
    assert "1 graph with 8 nodes and 7 edges, 6 of them programmatic" in out and "2.5 MB" in out


def test_dot_has_a_cluster_for_every_part_and_dashes_early_edges() -> None:
    lines = dot(step(1)).splitlines()
    assert [line.strip() for line in lines if "label=" in line and "[" not in line] == [
        'label="embed";', 'label="layer 0";', 'label="head";',
    ]  # fmt: skip
    assert '    n1 [label="attend, 1.00 us\\nattend_decode, 2 x 3 blocks of 256"];' in lines
    assert '    n2 [label="linear o, 2.00 us\\nodd\\"name, 18 blocks of 384"];' in lines
    assert "  n0 -> n1;" in lines and '  n1 -> n2 [style=dashed, label="early"];' in lines
    assert lines[0] == "digraph step {" and lines[-1] == "}" and "\n".join(lines).count("{") == 4


@pytest.mark.parametrize("layers", [1, 3])
def test_text_fits_into_the_picture(tmp_path: Path, layers: int) -> None:
    from ostinato.tools.inspect.picture import EARLY, draw, painted

    draw(step(layers), str(tmp_path / "found.png"))
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
    figure = painted(step(layers))
    figure.draw_without_rendering()
    left, right = figure.axes
    boxes = [box.get_window_extent() for box in left.patches]
    *labels, said = [text for text in left.texts if text.get_text()]
    mean = (1 + layers) / 2
    assert [text.get_text() for text in labels] == [
        f"attend, {mean:.2f} us\nattend_decode, 2 x 3 blocks of 256", 'linear o, 2.00 us\nodd"name, 18 blocks of 384',
    ]  # fmt: skip
    for text, box in zip(labels, boxes, strict=True):
        inner = text.get_window_extent()
        assert box.x0 < inner.x0 and inner.x1 < box.x1 and box.y0 < inner.y0 and inner.y1 < box.y1
    note = said.get_window_extent()
    assert said.get_text() == EARLY and note.y0 > 0 and note.y1 < min(box.y0 for box in boxes)
    assert f"{layers} x attend" in [text.get_text() for text in right.get_yticklabels()]
    assert all(text.get_window_extent().x1 < figure.bbox.x1 for text in right.texts)


@pytest.mark.parametrize(("scope", "graphs"), [("step", 1), ("layer", 5)])
def test_command_shows_the_calls_where_nothing_is_captured(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, scope: str, graphs: int
) -> None:
    json_file, dot_file = tmp_path / "found.json", tmp_path / "found.dot"
    options = f"--backend numpy --batch 2 --graph {scope} --prompt-len 5 --json {json_file} --dot {dot_file}"
    code = cli.main(["inspect", LLAMA, *options.split()])
    found = json.loads(json_file.read_text())
    assert code == 0 and found["apart"] == pytest.approx(abs(found["nodes_us"] / found["replay_us"] - 1))
    assert found["graphs"] == graphs and not found["captured"] and found["graph_bytes"] == 0
    layer = ["norm_qkv", "attend", "linear_add o", "norm_gate_up", "linear_add down"]
    operations = ["embed_tokens", *layer * 3, "norm_head", "sample", "advance"]
    assert [n["operation"] for n in found["nodes"]] == operations
    assert len(found["edges"]) == len(found["nodes"]) - graphs and all(n["us"] > 0 for n in found["nodes"])
    assert found["nodes_us"] == pytest.approx(sum(n["us"] for n in found["nodes"]))
    assert dot_file.read_text().count("subgraph") == 5
    assert found["nodes"][3]["arrays"] == "x [2, 48], weight [48, 48], b.x [2, 48], s.positions [2], norm [48]"
    assert "layers 1 to 2, each" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        pytest.param([], "expected MODEL or --shape, found neither", id="nothing"),
        pytest.param([LLAMA, "--shape", "llama-3.2-1b"], "found both", id="both"),
        pytest.param([LLAMA, "--batch", "17"], "batch: expected an integer in [1, 16], found 17", id="batch"),
        pytest.param([LLAMA, "--graph", "off"], "--graph", id="no-graph"),
        pytest.param([LLAMA, "--png", "no/such/file.png"], "png: expected a file in a directory", id="png"),
        pytest.param([LLAMA, "--dot", "no/such/file.dot"], "dot: expected a file in a directory", id="dot"),
        pytest.param(
            [LLAMA, "--prompt-len", "100", "--backend", "numpy"],
            "expected fewer than the model's maximum of 128",
            id="too-long",
        ),
    ],
)
def test_command_refuses(capsys: pytest.CaptureFixture[str], args: list[str], says: str) -> None:
    assert cli.main(["inspect", *args]) == 2
    assert says in capsys.readouterr().err
