"""The library's front door: LLM loads a model and generates or embeds with it; generate does both in one call."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from .checks import choice, flag
from .config import EngineConfig, ModelConfig, SamplingParams
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
from .run.sequence import Request
from .sizes import PAGE
from .stream import AsyncStream, Stream
from .text import end_tokens, prompt_text
from .text.template import ChatTemplate
from .text.tokenizer import Tokenizer
from .weights.checkpoint import Checkpoint, open_checkpoint
from .weights.fetch import resolve

Params = SamplingParams | Sequence[SamplingParams] | None
Messages = Sequence[dict[str, Any]]


class LLM:
    """A model, ready to generate or, if it is an encoder, to embed. Any number of threads may call at a time: what they
    ask for runs together, and each gets what it would get alone.

    model: a HF directory, a .gguf file, an alias or "org/name". The keyword arguments are the fields of EngineConfig,
    quiet (no lines and bars on stderr) and ops (operations to use in place of a backend's). Errors: CheckpointError,
    TokenizerError, DownloadError for the model; DeviceError if a backend asked for by name is not there.
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
        prefill_rows: int = 2048,
        seed: int | None = None,
        nvtx: bool = False,
        quiet: bool = False,
        ops: Ops | None = None,
    ) -> None:
        self.options = EngineConfig(backend, graph, dtype, max_batch, max_len, cache_tokens, prefill_rows, seed, nvtx)
        report, began = Reporter(quiet), time.perf_counter()
        self._quiet, self._random = quiet, random.Random(self.options.seed)
        self._encoding = threading.Lock()  # an encoder has the arrays of one pass
        self._bar = report.late_bar("prompt")
        with open_checkpoint(resolve(str(model), progress=not quiet)) as ck:
            self._open(ck, ops, report)
        forks.in_child(self._after_fork)
        self.load_s = time.perf_counter() - began
        made = self.captured
        what = "no graphs" if self.graph == "off" else f"graph {self.graph}: {made.graphs} recorded"
        report.line(f"{what} in {made.seconds:.2f} s, {made.bytes / 1e6:.1f} MB; ready after {self.load_s:.1f} s")

    def _open(self, ck: Checkpoint, ops: Ops | None, report: Reporter) -> None:
        """Everything that needs the checkpoint's files."""
        self.tokenizer = Tokenizer.from_checkpoint(ck)
        own = model_config(ck.config, ck.generation_config, ck.source)
        c = self.config = end_tokens.add(own, self.tokenizer.eos_ids)
        self._template: ChatTemplate | TokenizerError
        try:
            self._template = ChatTemplate.from_checkpoint(ck, self.tokenizer)
        except TokenizerError as e:
            self._template = e  # for whoever calls chat
        banned = self.tokenizer.unknown(c.vocab)
        if ops is None:
            ops, why = load.choose(self.options.backend, self.options.dtype, c.dtype)
        else:
            why = "given by the caller"
        self.backend, self.device_name = ops.name, ops.device.name
        report.line(f"backend {self.backend} on {self.device_name}: {why}")
        with report.bar("weights") as bar:
            w = load.weights(ops, ck, c, longest(c, self.options), banned, bar, report.line)
        with report.bar(f"graph {self.options.graph}") as bar:
            self._prepared: Runner | Encoder | None = (Runner if c.causal else Encoder)(ops, c, w, self.options, bar)
        self._engine = Engine(self._prepared, progress=self._bar.update) if isinstance(self._prepared, Runner) else None

    # -- what was chosen ------------------------------------------------------------------------------------------

    @property
    def _open_model(self) -> Runner | Encoder:
        if self._prepared is None:
            raise RequestError("LLM: expected an open one, found it closed")
        self._prepared.device.check()
        return self._prepared

    @property
    def runner(self) -> Runner:
        """Weights, cache and graphs on the device. RequestError for an encoder, and once the LLM is closed."""
        found = self._open_model
        expect_kind(self.config, causal=True)
        assert isinstance(found, Runner)
        return found

    @property
    def encoder(self) -> Encoder:
        """The same of an encoder. RequestError for a decoder, and once the LLM is closed."""
        found = self._open_model
        expect_kind(self.config, causal=False)
        assert isinstance(found, Encoder)
        return found

    @property
    def graph(self) -> str:
        """What a graph covers: "step", "layer" or "off"."""
        return self.options.graph

    @property
    def dtype(self) -> str:
        """Type of weights and activations."""
        return self._open_model.ops.dtype.name

    @property
    def max_len(self) -> int:
        """Tokens of the longest prompt and completion together."""
        return self._open_model.max_len

    @property
    def captured(self) -> CaptureReport:
        """How many graphs, seconds, bytes."""
        return self._open_model.captured

    # -- generating -----------------------------------------------------------------------------------------------

    def generate(self, prompts: Any, params: Params = None, *, parse_special: bool = False) -> list[RequestOutput]:
        """Complete prompts; results in their order.

        prompts: a string, a list of token ids, or a list of either. params: for all of them, or one each; None is
        greedy until a stop token. parse_special: control tokens that a prompt's text spells count as such, which is not
        for text of strangers. RequestError names what is wrong before anything runs; CacheFull likewise. Ctrl-C ends
        the requests of this call alone."""
        return self._complete(self.requests(prompts, params, parse_special=parse_special))

    def stream(
        self, prompt: requests.Prompt, params: SamplingParams | None = None, *, parse_special: bool = False
    ) -> Stream:
        """Complete one prompt, giving out text as it becomes certain; the last chunk has the output.

        A request that is not acceptable raises here, not at the first chunk. close() ends it early, from any thread;
        so does forgetting it. parse_special as for generate."""
        return Stream(self.engine, self.request(prompt, params, single=True, parse_special=parse_special))

    def abort(self, stream: Stream | AsyncStream | None = None) -> None:
        """End a stream, or everything that runs, within one step: outputs have what there is, and say "abort"."""
        if stream is None:
            self.engine.abort_all()
        else:
            self.engine.abort(stream.handle)

    def chat(self, messages: Messages, params: SamplingParams | None = None) -> RequestOutput:
        """The model's answer to messages [{"role": "user", "content": "..."}, ...], by its chat template."""
        return self._complete([self.chat_request(messages, params)])[0]

    def stream_chat(self, messages: Messages, params: SamplingParams | None = None) -> Stream:
        """Like chat, as a stream."""
        return Stream(self.engine, self.chat_request(messages, params, single=True))

    def chat_prompt(self, messages: Messages) -> list[int]:
        """Token ids of messages in the model's chat template. TokenizerError if it has none."""
        self.runner  # noqa: B018  an encoder is told so, not that it has no template
        if isinstance(self._template, TokenizerError):
            raise self._template
        return self._template.encode(list(messages), max_len=self.max_len)

    def logits(self, ids: Sequence[int], decode_from: int | None = None) -> np.ndarray:
        """[T, V] float32: row t is what the model says follows ids[:t + 1].

        By prefill, or with decode_from=n the first n tokens so and each later one by a decode step, whose rows are
        -1e30 where the tokenizer has no token; nothing else is banned."""
        return self.engine.logits(requests.token_ids(ids, self.config.vocab), decode_from)

    def embed(self, texts: Any, pooling: str = "mean", normalize: bool = True) -> np.ndarray:
        """[N, D] float32: vectors of texts, a list of strings or one string, in their order; encoders only.

        pooling: "mean" of the last hidden states of all tokens, those that the tokenizer puts at the ends included, or
        "cls", that of the first token. normalize: to length 1, so that a product of two vectors is their cosine. A
        text gives the same bits alone and in any batch (not with cublas). RequestError names what is wrong."""
        encoder = self.encoder
        wanted = requests.texts(texts)
        choice("pooling", pooling, ("mean", "cls"))
        flag("normalize", normalize)
        ids = [requests.text_ids(i, text, self.tokenizer, self.max_len) for i, text in enumerate(wanted)]
        with self._encoding:
            vectors = encoder.embed(ids, cls=pooling == "cls")
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12) if normalize else vectors

    def close(self) -> None:
        """End the chat template's process and let go of the device's memory; requests still open end with an error.

        Never raises; the LLM is of no use afterwards."""
        if isinstance(self._template, ChatTemplate):
            self._template.close()
        if self._engine is not None:
            self._engine.close()
        self._bar.stop()
        self._prepared = self._engine = None

    def __reduce__(self) -> NoReturn:
        raise RequestError("LLM: cannot be copied or sent to another process; make one there")

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- for AsyncLLM and servers -----------------------------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """What runs the requests of a decoder. RequestError for an encoder, and once the LLM is closed."""
        self.runner  # noqa: B018  says what is wrong
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
    ) -> Request:
        """A request for the engine, checked. RequestError names what is wrong.

        single: it must have one completion. chat: the end of turn ends it as well. parse_special as for generate."""
        params = params or SamplingParams()
        if single and params.n != 1:
            raise RequestError(f"n: expected 1 in a stream, found {params.n}")
        limits = requests.Limits(self.max_len, (self.runner.table.pages - 1) * PAGE)
        encode = partial(prompt_text.encode, parse_special=flag("parse_special", parse_special), tell=not self._quiet)
        config = self._chat_config() if chat else self.config
        seed = partial(self._random.getrandbits, 64)
        made = requests.make(prompt, params, config, self.tokenizer, limits, seed, encode)
        self.engine.check(made)
        return made

    def chat_request(
        self, messages: Messages, params: SamplingParams | None = None, *, single: bool = False
    ) -> Request:
        """The same of a chat, which the end of turn ends as well."""
        return self.request(self.chat_prompt(messages), params, single=single, chat=True)

    def requests(self, prompts: Any, params: Params = None, *, parse_special: bool = False) -> list[Request]:
        """The requests of a call of `generate`. RequestError says which prompt of a list is not acceptable."""
        wanted, several = requests.prompts(prompts)
        made = []
        for i, (prompt, p) in enumerate(zip(wanted, _params(params, len(wanted)), strict=True)):
            try:
                made.append(self.request(prompt, p, parse_special=parse_special))
            except RequestError as e:
                raise requests.of_prompt(i, e) if several else e from None
        return made

    def _complete(self, todo: list[Request]) -> list[RequestOutput]:
        """The outputs of requests, once all have ended."""
        engine, handles = self.engine, []
        try:
            with held():  # Ctrl-C finds each one in the list
                handles += [engine.add(request) for request in todo]
            for handle in handles:
                engine.wait(handle, end=True)
        except BaseException:
            engine.abort(*handles)
            raise
        return [handle.output() for handle in handles]

    def _chat_config(self) -> ModelConfig:
        """The model with the end of turn among its end tokens."""
        return end_tokens.add(self.config, self._template.end_of_turn())  # pyright: ignore[reportAttributeAccessIssue]

    def _after_fork(self) -> None:
        """In a forked child: a GPU is the parent's, with all that is on it."""
        self._encoding = threading.Lock()
        if self.options.seed is None:
            self._random.seed()  # else every child would choose what the parent chooses
        if self._prepared is not None and self._prepared.device.stream is not None:
            forks.never_destroy(self._prepared)


def generate(model: str | Path, prompt: str | list[str], **params: Any) -> str | list[str]:
    """Load a model, complete a prompt, and give back the text; a list of prompts gives a list of texts.

    params: fields of SamplingParams; parse_special as for LLM.generate; those of EngineConfig and quiet go to LLM (seed
    to SamplingParams)."""
    special = params.pop("parse_special", False)
    sampling = {f.name for f in fields(SamplingParams)}
    request = SamplingParams(**{name: value for name, value in params.items() if name in sampling})
    with LLM(model, **{name: value for name, value in params.items() if name not in sampling}) as llm:
        texts = [output.text for output in llm.generate(prompt, request, parse_special=special)]
    return texts[0] if isinstance(prompt, str) else texts


def _params(given: Params, prompts: int) -> list[SamplingParams]:
    """One SamplingParams for each prompt."""
    if given is None or isinstance(given, SamplingParams):
        return [given or SamplingParams()] * prompts
    if len(given) != prompts:
        raise RequestError(f"params: expected one, or one for each of the {prompts} prompts, found {len(given)}")
    return list(given)
