"""The Runner on the kernels, emulated or on a GPU: the same tokens as on NumPy, in every graph mode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from configs import changed
from emulator import EmulatedDevice
from products import cublas
from small import MODELS, complete, events, logits, runner, sequence

from ostinato import LLM, SamplingParams
from ostinato.ops.cuda import CudaOps
from ostinato.ops.device import Device
from ostinato.run.runner import Runner

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
OPTIONS: dict[str, Any] = {"max_batch": 3, "max_len": 128, "cache_tokens": 512}
PROMPTS = [[1, 2, 3], [4], list(range(70)), [9, 8, 7, 6]]


def small(name: str):
    return changed(MODELS[name], layers=2, max_len=128)


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_those_of_numpy(device: Device, name: str) -> None:
    c = small(name)
    got = complete(runner(c, CudaOps(device, "float32"), **OPTIONS), [sequence(p, 5) for p in PROMPTS])
    assert got == complete(runner(c, **OPTIONS), [sequence(p, 5) for p in PROMPTS])


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-4), ("float16", 0.02), ("bfloat16", 0.15)])
@pytest.mark.parametrize("ops", [CudaOps, cublas])
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_near_those_of_numpy(device: Device, name: str, ops: Callable, dtype: str, error: float) -> None:
    c, ids = small(name), [1, 5, 9, 13, 17]
    c = changed(c, window=min(c.sizes.window, 3))  # Mistral's sliding window, made smaller than the prompt
    expected = logits(runner(c, **OPTIONS), ids)
    on = runner(c, ops(device, dtype), **OPTIONS)
    np.testing.assert_allclose(logits(on, ids), expected, atol=error)
    np.testing.assert_allclose(logits(on, ids, decode_from=2), expected, atol=error)


@pytest.mark.parametrize("name", ["gpt2", "gpt2-gelu"])
def test_a_learned_position_is_there_up_to_the_last(device: Device, name: str) -> None:
    """Generate up to the last learned position, with graphs and a step ahead; compare the first tokens."""
    known = np.load(FIXTURES / name / "expected.npz")
    ids = [known[f"prompt_{i}"].tolist() for i in (2, 3)]
    with LLM(FIXTURES / name, ops=CudaOps(device, "float32"), max_batch=2, quiet=True) as llm:
        outputs = llm.generate(ids, SamplingParams(ignore_eos=True))
        assert [len(o.token_ids) for o in outputs] == [128 - 17, 128 - 70]
        assert [o.token_ids[:6] for o in outputs] == [known[f"greedy_{i}"].tolist() for i in (2, 3)]


FAMILIES = ["qwen3-yarn", "smollm3", "granite", "phi3", "phi3-longrope", "ministral", "mistral3", "ministral3"]


@pytest.mark.parametrize("name", FAMILIES)
def test_families_give_what_transformers_gives(device: Device, name: str) -> None:
    """A ragged batch through graphs, then logits of prefill and of decode steps."""
    known = np.load(FIXTURES / name / "expected.npz")
    with LLM(FIXTURES / name, ops=CudaOps(device, "float32"), max_batch=4, max_len=128, quiet=True) as llm:
        params = SamplingParams(max_tokens=6, ignore_eos=True)
        found = llm.generate([known[f"prompt_{i}"].tolist() for i in range(4)], params)
        assert [o.token_ids for o in found] == [known[f"greedy_{i}"].tolist() for i in range(4)]
        got = logits(llm.runner, known["prompt_2"].tolist(), decode_from=12)
        np.testing.assert_allclose(got[known["rows_2"]], known["logits_2"], atol=1e-3)


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
@pytest.mark.parametrize("scope", ["layer", "step"])
def test_graphs_and_padded_buckets_give_the_bits_of_eager_and_alone(device: Device, scope: str, name: str) -> None:
    """Compares tokens and log probabilities: eager and alone, against graphs with three of four rows used."""
    c, rows = small(name), []
    for graph, batches in (("off", [[0], [1], [2]]), (scope, [[0, 1, 2]])):
        on = runner(c, CudaOps(device, "bfloat16"), graph=graph, **{**OPTIONS, "max_batch": 4})
        rows.append([_logits(on, i) for batch in batches for i in batch] if graph == "off" else _together(on))
    for a, b in zip(*rows, strict=True):
        np.testing.assert_array_equal(a, b)


def _sequences(indices: list[int]):
    return [sequence(PROMPTS[i], 4, seed=i, temperature=0.9, logprobs=0) for i in indices]


def _logits(on: Runner, index: int) -> np.ndarray:
    return np.stack([np.array(e.logits) for e in events(on, _sequences([index]))])


def _together(on: Runner) -> list[np.ndarray]:
    sequences = _sequences([0, 1, 2])
    found = [(e.seq, np.array(e.logits)) for e in events(on, sequences)]
    return [np.stack([row for seq, row in found if seq is wanted]) for wanted in sequences]


def test_a_whole_model_under_every_schedule(shuffled: EmulatedDevice, device: Device) -> None:
    """The emulator raises unless three thread orders agree on every launch."""
    batch = [sequence(p, 3) for p in PROMPTS]
    got = complete(runner(small("mistral"), CudaOps(shuffled, "bfloat16"), **OPTIONS), batch)
    again = [sequence(p, 3) for p in PROMPTS]
    assert got == complete(runner(small("mistral"), CudaOps(device, "bfloat16"), **OPTIONS), again)
