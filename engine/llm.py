"""The public API: LLM loads a model and generates or embeds with it; generate() does both in one call."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from .checks import choice, flag
from .config import EngineConfig, ModelConfig, SamplingParams, Scheduling
from .errors import RequestError, TokenizerError
from .graph.capture import CaptureReport
from .models.families import model_config
from .ops.base import Ops
from .outputs import RequestOutput
from .process import forks
from .process.interrupts import held
from .report import Reporter
from .run import load, requests
from .run.base_runner import expect_kind, longest
from .run.encoder import Encoder
from .run.engine import Engine
from .run.runner import Runner
from .run.scheduler import Counters
from .run.sequence import Request
from .stream import AsyncStream, Stream
from .text import end_tokens, prompt_text
from .text.template import ChatTemplate
from .text.tokenizer import Tokenizer
from .weights.checkpoint import Checkpoint, open_checkpoint
from .weights.fetch import resolve

Params = SamplingParams | Sequence[SamplingParams] | None
Messages = Sequence[dict[str, Any]]


class LLM:
    """A loaded model: a decoder generates, an encoder embeds. Any number of threads may call it concurrently; their
    requests run in one batch, and each gets the result it would get alone.

    model: a Hugging Face directory, a .gguf file, an alias, or "org/name". Keyword arguments: the fields of
    EngineConfig; quiet (no messages and progress bars on stderr); ops (operations to use instead of a backend's).
    Raises CheckpointError, TokenizerError or DownloadError for the model, and DeviceError if the backend is not
    available.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        backend: str = "auto",
        graph: str = "step",
        dtype: str = "auto",
        max_batch: int = 16,
        max_len: int | None = None,
        cache_tokens: int | None = None,
        gpu_memory: float | None = None,
        swap_gb: float = 4.0,
        prefix_cache: bool = True,
        max_queue: int | None = None,
        prefill_rows: int = 2048,
        seed: int | None = None,
        nvtx: bool = False,
        quiet: bool = False,
        ops: Ops | None = None,
    ) -> None:
        self.options: EngineConfig = EngineConfig(
            backend=backend, graph=graph, dtype=dtype, max_batch=max_batch, max_len=max_len, cache_tokens=cache_tokens,
            gpu_memory=gpu_memory, swap_gb=swap_gb, prefix_cache=prefix_cache, max_queue=max_queue,
            prefill_rows=prefill_rows, seed=seed, nvtx=nvtx,
        )  # fmt: skip
        report, began = Reporter(quiet), time.perf_counter()
        self._quiet, self._random = quiet, random.Random(self.options.seed)
        self._encoding = threading.Lock()  # an encoder has the buffers of one pass
        self._bar = report.late_bar("prompt")
        with open_checkpoint(resolve(str(model), progress=not quiet)) as ck:
            self._open(ck, ops, report)
        forks.in_child(self._after_fork)
        self.load_s: float = time.perf_counter() - began
        made = self.captured
        what = "no graphs" if self.graph == "off" else f"graph {self.graph}: {made.graphs} captured"
        report.line(f"{what} in {made.seconds:.2f} s, {made.bytes / 1e6:.1f} MB; ready after {self.load_s:.1f} s")

    def _open(self, ck: Checkpoint, ops: Ops | None, report: Reporter) -> None:
        """Load everything that needs the checkpoint's files."""
        self.tokenizer: Tokenizer = Tokenizer.from_checkpoint(ck)
        own = model_config(ck.config, ck.generation_config, ck.source)
        c = end_tokens.add(own, self.tokenizer.eos_ids)
        self.config: ModelConfig = c
        self._template: ChatTemplate | TokenizerError
        try:
            self._template = ChatTemplate.from_checkpoint(ck, self.tokenizer)
        except TokenizerError as e:
            self._template = e  # raised when chat is called
        banned = self.tokenizer.unknown(c.vocab)
        if ops is None:
            ops, why = load.choose(self.options.backend, self.options.dtype, c.dtype)
        else:
            why = "given by the caller"
        self.backend: str = ops.name
        self.device_name: str = ops.device.name
        report.line(f"backend {self.backend} on {self.device_name}: {why}")
        with report.bar("weights") as bar:
            w = load.weights(ops, ck, c, longest(c, self.options), banned, bar, report.line)
        with report.bar(f"graph {self.options.graph}") as bar:
            self._prepared: Runner | Encoder | None = (Runner if c.causal else Encoder)(ops, c, w, self.options, bar)
        self._engine = None
        if isinstance(runner := self._prepared, Runner):
            self._engine = Engine(runner, progress=self._bar.update, max_queue=self.options.max_queue)
            report.line(runner.memory.line())
            if self.options.prefix_cache and runner.prefix is None:
                report.line(f"prefix cache: off, as sums of backend {ops.name} depend on what else is in a pass")

    # -- properties -----------------------------------------------------------------------------------------------

    @property
    def _open_model(self) -> Runner | Encoder:
        if self._prepared is None:
            raise RequestError("LLM: expected an open model, found it closed")
        self._prepared.device.check()
        return self._prepared

    @property
    def runner(self) -> Runner:
        """Weights, KV cache and graphs of a decoder. RequestError for an encoder, or if the LLM is closed."""
        found = self._open_model
        expect_kind(self.config, causal=True)
        assert isinstance(found, Runner)
        return found

    @property
    def encoder(self) -> Encoder:
        """Weights and graphs of an encoder. RequestError for a decoder, or if the LLM is closed."""
        found = self._open_model
        expect_kind(self.config, causal=False)
        assert isinstance(found, Encoder)
        return found

    @property
    def graph(self) -> str:
        """The graph scope: "step", "layer" or "off"."""
        return self.options.graph

    @property
    def dtype(self) -> str:
        """Storage type of weights and activations, e.g. "bfloat16"."""
        return self._open_model.ops.dtype.name

    @property
    def max_len(self) -> int:
        """Maximum number of tokens of prompt plus completion."""
        return self._open_model.max_len

    @property
    def captured(self) -> CaptureReport:
        """Number of captured graphs, seconds, and bytes of device memory."""
        return self._open_model.captured

    # -- generating -----------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Any,
        params: Params = None,
        *,
        parse_special: bool = False,
        schedule: Scheduling | None = None,
    ) -> list[RequestOutput]:
        """Complete one prompt or many. The outputs come in the order of the prompts.

            outputs = llm.generate(["One, two,", "Once upon a time"], SamplingParams(max_tokens=20))
            print(outputs[0].text)

        prompts: a string, a list of token ids, or a list of either. All of them run together, with the requests of
        other threads, and each gets the tokens that it would get alone.
        params: one for all prompts, or a list with one for each. None: greedy, until an end token or max_len.
        parse_special: text that spells a control token becomes that token. Do not use it for untrusted text.
        schedule: priority, timeout and client key of the requests, and which KV pages they may share.

        RequestError, CacheFull or QueueFull is raised before anything runs; DeviceError if a step fails. Ctrl-C ends
        only the requests of this call."""
        return self._complete(self.requests(prompts, params, parse_special=parse_special, schedule=schedule))

    def stream(
        self,
        prompt: requests.Prompt,
        params: SamplingParams | None = None,
        *,
        parse_special: bool = False,
        schedule: Scheduling | None = None,
    ) -> Stream:
        """Complete one prompt and yield text as soon as it is final; the last chunk has the whole output.

        RequestError is raised here, not at the first chunk. The request ends early by close(), from any thread, or when
        the stream is garbage collected. parse_special, schedule: see generate."""
        request = self.request(prompt, params, single=True, parse_special=parse_special, schedule=schedule)
        return Stream(self.engine, request)

    def abort(self, stream: Stream | AsyncStream | None = None) -> None:
        """End a stream, or all requests, within one step. Outputs hold the tokens so far and finish_reason "abort"."""
        if stream is None:
            self.engine.abort_all()
        elif stream.begun:
            self.engine.abort(stream.handle)
        else:
            stream.close()

    def chat(
        self, messages: Messages, params: SamplingParams | None = None, *, schedule: Scheduling | None = None
    ) -> RequestOutput:
        """Answer messages [{"role": "user", "content": "..."}, ...] with the model's chat template."""
        return self._complete([self.chat_request(messages, params, schedule=schedule)])[0]

    def stream_chat(
        self, messages: Messages, params: SamplingParams | None = None, *, schedule: Scheduling | None = None
    ) -> Stream:
        """Answer messages as a stream."""
        return Stream(self.engine, self.chat_request(messages, params, single=True, schedule=schedule))

    def chat_prompt(self, messages: Messages) -> list[int]:
        """Token ids of messages, rendered by the chat template. TokenizerError if the model has none."""
        self.runner  # noqa: B018  an encoder must fail for being an encoder, not for its missing template
        if isinstance(self._template, TokenizerError):
            raise self._template
        return self._template.encode(list(messages), max_len=self.max_len)

    def logits(self, ids: Sequence[int], decode_from: int | None = None) -> np.ndarray:
        """Logits [T, V] float32: row t scores the token that follows ids[:t + 1].

        All tokens are prefilled, or with decode_from=n the first n, and each later one is a decode step. Rows of decode
        steps are -1e30 where the tokenizer has no token; no other token is banned."""
        return self.engine.logits(requests.token_ids(ids, self.config.vocab), decode_from)

    def embed(self, texts: Any, pooling: str = "mean", normalize: bool = True) -> np.ndarray:
        """Embed texts (a list of strings, or one string) with an encoder: [N, D] float32, in order.

        pooling: "mean" of the last hidden states of all tokens, including special tokens, or "cls", that of the first
        token. normalize: to length 1, so that the dot product of two vectors is their cosine. A text has the same bits
        alone and in any batch (not with cublas). RequestError for invalid texts, or a decoder."""
        encoder = self.encoder
        wanted = requests.texts(texts)
        choice("pooling", pooling, ("mean", "cls"))
        flag("normalize", normalize)
        ids = [requests.text_ids(i, text, self.tokenizer, self.max_len) for i, text in enumerate(wanted)]
        with self._encoding:
            vectors = encoder.embed(ids, cls=pooling == "cls")
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12) if normalize else vectors

    @property
    def counters(self) -> Counters:
        """Counters of the scheduler since the model was loaded: prompt tokens, cached tokens, preemptions."""
        return self.engine.counters

    def flush_prefix_cache(self) -> None:
        """Free the KV pages that are kept for later prompts. Changes no result, only the time to the first token."""
        self.engine.flush()

    def close(self) -> None:
        """End the chat template's process and release device memory. Open requests end with an error.

        Never raises. The LLM cannot be used afterwards."""
        if isinstance(self._template, ChatTemplate):
            self._template.close()
        if self._engine is not None:
            self._engine.close()
        self._bar.stop()
        self._prepared = self._engine = None

    def __reduce__(self) -> NoReturn:
        raise RequestError("LLM: cannot be copied or sent to another process; create one there")

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- for AsyncLLM and servers -----------------------------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """The engine of a decoder. RequestError for an encoder, or if the LLM is closed."""
        self.runner  # noqa: B018  raises the right error
        assert self._engine is not None
        return self._engine

    def request(
        self,
        prompt: requests.Prompt,
        params: SamplingParams | None = None,
        *,
        single: bool = False,
        chat: bool = False,
        parse_special: bool = False,
        schedule: Scheduling | None = None,
    ) -> Request:
        """Create and check a request for the engine. RequestError for an invalid prompt or parameter.

        single: require params.n == 1. chat: the end-of-turn token also ends it. parse_special, schedule: see
        generate."""
        params = params or SamplingParams()
        if single and params.n != 1:
            raise RequestError(f"n: expected 1 in a stream, found {params.n}")
        limits = requests.Limits(self.max_len, self.runner.memory.tokens)
        encode = partial(prompt_text.encode, parse_special=flag("parse_special", parse_special), tell=not self._quiet)
        config = self._chat_config() if chat else self.config
        seed = partial(self._random.getrandbits, 64)
        made = requests.make(prompt, params, config, self.tokenizer, limits, seed, encode)
        made = made if schedule is None else replace(made, schedule=schedule)
        self.engine.check(made)
        return made

    def chat_request(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        single: bool = False,
        schedule: Scheduling | None = None,
    ) -> Request:
        """Create and check a request from chat messages. The end-of-turn token also ends it."""
        return self.request(self.chat_prompt(messages), params, single=single, chat=True, schedule=schedule)

    def requests(
        self, prompts: Any, params: Params = None, *, parse_special: bool = False, schedule: Scheduling | None = None
    ) -> list[Request]:
        """Create the requests of a call of `generate`. RequestError names the prompt of a list that is invalid."""
        wanted, several = requests.prompts(prompts)
        made = []
        for i, (prompt, p) in enumerate(zip(wanted, _params(params, len(wanted)), strict=True)):
            try:
                made.append(self.request(prompt, p, parse_special=parse_special, schedule=schedule))
            except RequestError as e:
                raise requests.of_prompt(i, e) if several else e from None
        return made

    def _complete(self, todo: list[Request]) -> list[RequestOutput]:
        """Run requests to their end and return their outputs."""
        engine, handles = self.engine, []
        try:
            with held():  # no Ctrl-C between adding a request and listing its handle
                handles += [engine.add(request) for request in todo]
            for handle in handles:
                engine.wait(handle, end=True)
        except BaseException:
            engine.abort(*handles)
            raise
        return [handle.output() for handle in handles]

    def _chat_config(self) -> ModelConfig:
        """The model's configuration with the end-of-turn token among its end tokens."""
        return end_tokens.add(self.config, self._template.end_of_turn())  # pyright: ignore[reportAttributeAccessIssue]

    def _after_fork(self) -> None:
        """In a forked child: everything on a GPU belongs to the parent and must not be freed."""
        self._encoding = threading.Lock()
        if self.options.seed is None:
            self._random.seed()  # else every child would draw the parent's seeds
        if self._prepared is not None and self._prepared.device.is_gpu:
            forks.never_destroy(self._prepared)


def generate(model: str | Path, prompt: str | list[str], **params: Any) -> str | list[str]:
    """Load a model, complete a prompt and return the text. A list of prompts gives a list of texts.

        ostinato.generate("smollm2-135m", "The capital of France is", max_tokens=8)

    params: fields of SamplingParams, such as max_tokens and seed; parse_special, as for LLM.generate; options of LLM,
    such as backend and quiet. For more than one call, keep an LLM: loading takes longer than a short completion."""
    special = params.pop("parse_special", False)
    sampling = {f.name for f in fields(SamplingParams)}
    request = SamplingParams(**{name: value for name, value in params.items() if name in sampling})
    with LLM(model, **{name: value for name, value in params.items() if name not in sampling}) as llm:
        texts = [output.text for output in llm.generate(prompt, request, parse_special=special)]
    return texts[0] if isinstance(prompt, str) else texts


def _params(given: Params, prompts: int) -> list[SamplingParams]:
    """One SamplingParams per prompt."""
    if given is None or isinstance(given, SamplingParams):
        return [given or SamplingParams()] * prompts
    if len(given) != prompts:
        raise RequestError(f"params: expected one, or one per prompt ({prompts}), found {len(given)}")
    return list(given)
