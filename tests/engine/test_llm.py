"""The class LLM on tiny checkpoints: its arguments and its results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostinato
from ostinato import LLM, CacheFull, DeviceError, SamplingParams, Scheduling, TokenizerError
from ostinato.ops.numpy import NumpyOps

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
LLAMA = FIXTURES / "llama"
HOT = SamplingParams(temperature=1.5, seed=11, max_tokens=20, ignore_eos=True)


def expected(name: str = "llama") -> dict[str, np.ndarray]:
    return dict(np.load(FIXTURES / name / "expected.npz"))


def test_greedy_continuations_are_those_of_transformers(llm: LLM) -> None:
    known = expected()
    ids = [known[f"prompt_{i}"].tolist() for i in range(4)]
    outputs = llm.generate(ids, SamplingParams(max_tokens=6, ignore_eos=True))
    for i, out in enumerate(outputs):
        assert out.prompt is None and out.prompt_token_ids == ids[i] and out.prompt_tokens == len(ids[i])
        assert out.token_ids == known[f"greedy_{i}"].tolist()
        assert (out.finish_reason, out.completion_tokens) == ("length", 6)
        assert out.ttft > 0 and out.decode_tok_s is not None and out.decode_tok_s > 0
        assert out.text == llm.tokenizer.decode(out.token_ids)


PROMPTS = [
    pytest.param("hello", ["hello"], id="a string"),
    pytest.param(["hello", "you"], ["hello", "you"], id="strings"),
    pytest.param([5, 6], [None], id="ids"),
    pytest.param([[5, 6], [7]], [None, None], id="lists of ids"),
    pytest.param(["a", [5]], ["a", None], id="both"),
    pytest.param(np.array([5, 6]), [None], id="an array of ids"),
    pytest.param([], [], id="none"),
]


@pytest.mark.parametrize(("given", "prompts"), PROMPTS)
def test_prompts(llm: LLM, given: Any, prompts: list[str | None]) -> None:
    outputs = llm.generate(given, SamplingParams(max_tokens=2))
    assert [out.prompt for out in outputs] == prompts
    for out in outputs:
        if out.prompt is not None:
            assert out.prompt_token_ids == llm.tokenizer.encode(out.prompt)


def test_each_prompt_with_its_own_parameters_and_in_order(llm: LLM) -> None:
    lengths = [9, 1, 4, 7, 2, 8, 3]
    params = [SamplingParams(max_tokens=n, ignore_eos=True) for n in lengths]
    outputs = llm.generate([[10 + n] for n in lengths], params)
    assert [out.completion_tokens for out in outputs] == lengths
    assert [out.prompt_token_ids for out in outputs] == [[10 + n] for n in lengths]
    assert outputs[1].decode_tok_s is None


def test_n_outputs_are_those_of_consecutive_seeds(llm: LLM) -> None:
    params = {"temperature": 1.5, "max_tokens": 12, "ignore_eos": True}
    out = llm.generate("ab", SamplingParams(n=5, seed=2**64 - 2, **params))[0]
    assert [o.index for o in out.outputs] == [0, 1, 2, 3, 4] and out.completion_tokens == 60
    seeds = [2**64 - 2, 2**64 - 1, 0, 1, 2]
    alone = [llm.generate("ab", SamplingParams(seed=s, **params))[0].token_ids for s in seeds]
    assert [o.token_ids for o in out.outputs] == alone and len(set(map(tuple, alone))) == 5


def test_without_a_seed_every_call_differs_unless_the_engine_has_one() -> None:
    params = SamplingParams(temperature=2.0, max_tokens=20, ignore_eos=True)
    runs = []
    for _ in range(2):
        with LLM(LLAMA, backend="numpy", seed=3, quiet=True) as llm:
            runs.append([llm.generate("a", params)[0].token_ids for _ in range(2)])
    assert runs[0] == runs[1] and runs[0][0] != runs[0][1]


STREAMS = [
    pytest.param({}, id="sampled"),
    pytest.param({"stop": ["e", "\n"]}, id="stop texts"),
    pytest.param({"temperature": 0.0}, id="greedy"),
    pytest.param({"logprobs": 2}, id="logprobs"),
    pytest.param({"ignore_eos": False, "stop_token_ids": list(range(3, 9))}, id="stop tokens"),
]


@pytest.mark.parametrize("changes", STREAMS)
@pytest.mark.parametrize("seed", range(4))
def test_a_stream_is_the_same_as_generate(llm: LLM, changes: dict[str, Any], seed: int) -> None:
    params = SamplingParams(**{"temperature": 1.5, "seed": seed, "max_tokens": 30, "ignore_eos": True, **changes})
    whole = llm.generate("ab", params)[0]
    chunks = list(llm.stream("ab", params))
    assert "".join(c.text for c in chunks) == whole.text
    assert [t for c in chunks for t in c.token_ids] == whole.token_ids
    assert [c.output is not None for c in chunks] == [False] * (len(chunks) - 1) + [True]
    last = chunks[-1].output
    assert last is not None and last.outputs == whole.outputs


def test_stop_text_cuts_the_text_and_stop_token_is_counted(llm: LLM) -> None:
    free = llm.generate("ab", HOT)[0]
    stop = free.text[6:9]
    cut = llm.generate("ab", SamplingParams(temperature=1.5, seed=11, max_tokens=20, ignore_eos=True, stop=stop))[0]
    assert cut.text == free.text[: free.text.index(stop)] and cut.finish_reason == "stop"
    assert cut.token_ids == free.token_ids[: len(cut.token_ids)] and len(cut.token_ids) < 20
    token = free.token_ids[7]
    ended = llm.generate(
        "ab", SamplingParams(temperature=1.5, seed=11, max_tokens=20, ignore_eos=True, stop_token_ids=[token])
    )[0]
    first = free.token_ids.index(token)
    assert ended.token_ids == free.token_ids[: first + 1] and ended.finish_reason == "stop"
    before = llm.tokenizer.incremental()
    assert ended.text == "".join(map(before.push, free.token_ids[:first])) + before.flush()


def test_min_tokens_bans_stop_tokens_until_then(llm: LLM) -> None:
    stops = list(range(3, 11))
    for seed in range(5):
        params = {"temperature": 2.0, "seed": seed, "stop_token_ids": stops, "ignore_eos": True, "max_tokens": 90}
        out = llm.generate("ab", SamplingParams(min_tokens=40, **params))[0]
        assert len(out.token_ids) > 40 and not set(out.token_ids[:40]) & set(stops)


def test_max_tokens_is_what_fits_when_not_given(llm: LLM) -> None:
    out = llm.generate([[5] * 100], SamplingParams(ignore_eos=True))[0]
    assert out.completion_tokens == 28 and llm.max_len == 128


def test_logprobs_are_those_of_the_logits(llm: LLM) -> None:
    out = llm.generate("abc", SamplingParams(temperature=1.0, seed=1, max_tokens=8, logprobs=3, ignore_eos=True))[0]
    rows = llm.logits([*out.prompt_token_ids, *out.token_ids])[len(out.prompt_token_ids) - 1 :]
    assert out.outputs[0].logprobs is not None
    for token, row, given in zip(out.token_ids, rows, out.outputs[0].logprobs, strict=False):
        exact = row.astype(np.float64) - np.log(np.exp(row.astype(np.float64)).sum())
        assert token in given and list(given)[:3] == np.argsort(-exact, kind="stable")[:3].tolist()
        assert all(value == pytest.approx(exact[i], abs=1e-4) for i, value in given.items())
    assert llm.generate("abc", SamplingParams(max_tokens=1))[0].outputs[0].logprobs is None


def test_logits_of_decode_steps_are_those_of_prefill(llm: LLM) -> None:
    ids = expected()["prompt_3"].tolist()
    np.testing.assert_allclose(llm.logits(ids, decode_from=3), llm.logits(ids), atol=1e-4)


def test_chat_is_the_template_then_generate(llm: LLM) -> None:
    messages = [{"role": "user", "content": "hi"}]
    ids = llm.chat_prompt(messages)
    assert llm.chat(messages, HOT).token_ids == llm.generate([ids], HOT)[0].token_ids
    assert "".join(c.text for c in llm.stream_chat(messages, HOT)) == llm.generate([ids], HOT)[0].text


def test_cache_too_small_for_a_request() -> None:
    with LLM(LLAMA, backend="numpy", cache_tokens=64, quiet=True) as llm:
        assert llm.generate([[5] * 10], SamplingParams(ignore_eos=True))[0].completion_tokens == 54
        with pytest.raises(CacheFull, match=r"expected at most 64 tokens.*found 65"):
            llm.generate([[5] * 10], SamplingParams(max_tokens=55))


def test_ids_without_a_token_are_never_sampled() -> None:
    with LLM(FIXTURES / "qwen2", backend="numpy", quiet=True) as llm:
        assert llm.config.vocab == 288 and llm.tokenizer.vocab_size == 272
        params = SamplingParams(temperature=2.0, n=8, seed=0, ignore_eos=True, max_tokens=100)
        assert max(t for o in llm.generate("a", params)[0].outputs for t in o.token_ids) < 272
        assert np.abs(llm.logits([1, 2])).max() < 1e3


@pytest.mark.parametrize("graph", ["off", "layer", "step"])
@pytest.mark.parametrize("name", ["mistral", "qwen3", "gpt2", "gpt2-gelu"])
def test_every_graph_scope_gives_the_same(graph: str, name: str) -> None:
    known = expected(name)
    with LLM(FIXTURES / name, backend="numpy", graph=graph, max_batch=3, quiet=True) as llm:
        prompts = [known[f"prompt_{i}"].tolist() for i in range(4)]
        outputs = llm.generate(prompts, SamplingParams(max_tokens=6, ignore_eos=True))
        assert [o.token_ids for o in outputs] == [known[f"greedy_{i}"].tolist() for i in range(4)]
        assert llm.graph == graph and (llm.captured.graphs > 0) == (graph != "off")


def test_generate_in_one_call() -> None:
    options = {"max_tokens": 4, "backend": "numpy", "quiet": True}
    one = ostinato.generate(LLAMA, "ab", **options)
    assert isinstance(one, str) and ostinato.generate(LLAMA, ["ab", "c"], **options)[0] == one
    with pytest.raises(TypeError, match="tempreature"):
        ostinato.generate(LLAMA, "ab", tempreature=1, **options)


@pytest.mark.parametrize(
    ("quiet", "lines"), [pytest.param(True, 0, id="quiet"), pytest.param(False, 3, id="three lines")]
)
def test_messages_while_loading(quiet: bool, lines: int, capfd: pytest.CaptureFixture) -> None:
    with LLM(LLAMA, backend="numpy", graph="layer", max_batch=2, quiet=quiet):
        out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == lines
    if not quiet:
        assert "backend numpy on CPU: float32" in err and f"graph layer: {2 * 5 + 8 * 4} captured in" in err


def test_auto_reports_its_choice_and_the_reason(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    def none(self: Any) -> None:
        raise DeviceError("backend cuda needs an NVIDIA GPU")

    monkeypatch.setattr("ostinato.ops.gpu.CupyDevice.__init__", none)
    with LLM(LLAMA) as llm:
        assert llm.backend == "numpy" and llm.dtype == "float32" and llm.device_name == "CPU"
    assert "numpy on CPU: float32, chosen because backend cuda needs an NVIDIA GPU" in capfd.readouterr().err
    with pytest.raises(DeviceError):
        LLM(LLAMA, backend="cuda", quiet=True)


def test_a_model_without_chat_template_still_generates(tmp_path: Path) -> None:
    for file in LLAMA.iterdir():
        if file.name != "tokenizer_config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with LLM(tmp_path, backend="numpy", quiet=True) as llm:
        assert llm.generate("ab", SamplingParams(max_tokens=2, ignore_eos=True))[0].completion_tokens == 2
        with pytest.raises(TokenizerError):
            llm.chat([{"role": "user", "content": "hi"}])


def test_a_second_request_finds_its_prompt_in_the_prefix_cache(llm: LLM) -> None:
    prompt, params = [i % 30 + 3 for i in range(100)], SamplingParams(max_tokens=5, ignore_eos=True, logprobs=3)
    llm.flush_prefix_cache()
    before = llm.counters
    outputs = [llm.generate(prompt, params)[0] for _ in range(2)]
    llm.flush_prefix_cache()
    outputs += llm.generate([prompt], params)
    assert [out.cached_tokens for out in outputs] == [0, 64, 0]
    assert outputs[0].outputs == outputs[1].outputs == outputs[2].outputs
    assert llm.counters.cached_tokens - before.cached_tokens == 64
    assert llm.counters.prompt_tokens - before.prompt_tokens == 300


def test_the_prefix_cache_is_off_where_sums_depend_on_other_rows(capfd: pytest.CaptureFixture) -> None:
    class Inexact(NumpyOps):
        exact = False

    prompt, params = [3] * 100, SamplingParams(max_tokens=2, ignore_eos=True)
    with LLM(LLAMA, ops=Inexact(), max_batch=1) as llm:
        assert "prefix cache: off" in capfd.readouterr().err
        assert [llm.generate(prompt, params)[0].cached_tokens for _ in range(2)] == [0, 0]


def test_a_schedule_reaches_the_scheduler(llm: LLM) -> None:
    """A timeout of 0 ends a request before its first token."""
    late = llm.generate("ab", schedule=Scheduling(timeout=0))[0]
    assert (late.finish_reason, late.token_ids) == ("timeout", [])
    prompt, params = [5] * 100, SamplingParams(max_tokens=2, ignore_eos=True)
    salted = [llm.generate(prompt, params, schedule=Scheduling(cache_salt=salt))[0] for salt in ("x", "y", "x")]
    assert [out.cached_tokens for out in salted] == [0, 0, 64]
