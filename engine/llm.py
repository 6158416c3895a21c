"""The library's front door: LLM loads a model and generates or embeds with it; generate does both in one call.

Puts together the checkpoint, the tokenizer, the runner and the loop. Used by the command line, the examples, and by
whoever imports ostinato.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from . import load, requests
from .checks import choice, flag
from .config import EngineConfig, SamplingParams
from .encoder import Encoder
from .errors import RequestError, TokenizerError
from .graph import CaptureReport
from .loop import Loop
from .models.families import model_config
from .ops.base import PAGE, Ops
from .outputs import RequestOutput, StreamChunk
from .passes import expect_kind, longest
from .report import Reporter
from .requests import Completion, Request
from .runner import Runner
from .template import ChatTemplate
from .tokenizer import Tokenizer
from .weights.checkpoint import Checkpoint, open_checkpoint
from .weights.fetch import resolve

Params = SamplingParams | Sequence[SamplingParams] | None
Messages = Sequence[dict[str, Any]]
Chunks = Generator[StreamChunk, None, None]


class LLM:
    """A model, ready to generate or, if it is an encoder, to embed. One call at a time: a second one meanwhile is a
    RequestError.

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
        self.engine = EngineConfig(backend, graph, dtype, max_batch, max_len, cache_tokens, prefill_rows, seed, nvtx)
        report, began = Reporter(quiet), time.perf_counter()
        self._lock, self._random = threading.Lock(), random.Random(self.engine.seed)
        with open_checkpoint(resolve(str(model), progress=not quiet)) as ck:
            self._open(ck, ops, report)
        self.load_s = time.perf_counter() - began
        made = self.captured
        what = "no graphs" if self.graph == "off" else f"graph {self.graph}: {made.graphs} recorded"
        report.line(f"{what} in {made.seconds:.2f} s, {made.bytes / 1e6:.1f} MB; ready after {self.load_s:.1f} s")

    def _open(self, ck: Checkpoint, ops: Ops | None, report: Reporter) -> None:
        """Everything that needs the checkpoint's files."""
        c = self.config = model_config(ck.config, ck.generation_config, ck.source)
        self.tokenizer = Tokenizer.from_checkpoint(ck)
        self._template: ChatTemplate | TokenizerError
        try:
            self._template = ChatTemplate.from_checkpoint(ck, self.tokenizer)
        except TokenizerError as e:
            self._template = e  # for whoever calls chat
        banned = self.tokenizer.unknown(c.vocab)
        if ops is None:
            ops, why = load.choose(self.engine.backend, self.engine.dtype, c.dtype)
        else:
            why = "given by the caller"
        self.backend, self.device_name = ops.name, ops.device.name
        report.line(f"backend {self.backend} on {self.device_name}: {why}")
        with report.bar("weights") as bar:
            w = load.weights(ops, ck, c, longest(c, self.engine), banned, bar)
        with report.bar(f"graph {self.engine.graph}") as bar:
            self._prepared: Runner | Encoder | None = (Runner if c.causal else Encoder)(ops, c, w, self.engine, bar)

    # -- what was chosen ------------------------------------------------------------------------------------------

    @property
    def _open_model(self) -> Runner | Encoder:
        if self._prepared is None:
            raise RequestError("LLM: expected an open one, found it closed")
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
        return self.engine.graph

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

    def generate(self, prompts: Any, params: Params = None) -> list[RequestOutput]:
        """Complete prompts; results in their order.

        prompts: a string, a list of token ids, or a list of either. params: for all of them, or one each; None is
        greedy until a stop token. RequestError names what is wrong before anything runs; CacheFull likewise."""
        began = time.perf_counter()
        wanted = requests.prompts(prompts)
        each = _params(params, len(wanted))
        todo = [self._request(prompt, p) for prompt, p in zip(wanted, each, strict=True)]
        with closing(self._run(todo)) as tokens:
            for _ in tokens:
                pass
        return [request.output(began) for request in todo]

    def stream(self, prompt: str | list[int], params: SamplingParams | None = None) -> Chunks:
        """Complete one prompt, giving out text as it becomes certain; the last chunk has the output.

        A request that is not acceptable raises here, not at the first chunk. Close the iterator to end early."""
        params = params or SamplingParams()
        if params.n != 1:
            raise RequestError(f"n: expected 1 in a stream, found {params.n}")
        return self._stream(self._request(prompt, params), time.perf_counter())

    def chat(self, messages: Messages, params: SamplingParams | None = None) -> RequestOutput:
        """The model's answer to messages [{"role": "user", "content": "..."}, ...], by its chat template."""
        return self.generate([self.chat_prompt(messages)], params)[0]

    def stream_chat(self, messages: Messages, params: SamplingParams | None = None) -> Chunks:
        """Like chat, as a stream."""
        return self.stream(self.chat_prompt(messages), params)

    def chat_prompt(self, messages: Messages) -> list[int]:
        """Token ids of messages in the model's chat template. TokenizerError if it has none."""
        self.runner  # noqa: B018  an encoder is told so, not that it has no template
        if isinstance(self._template, TokenizerError):
            raise self._template
        return self._template.encode(list(messages))

    def logits(self, ids: Sequence[int], decode_from: int | None = None) -> np.ndarray:
        """[T, V] float32: row t is what the model says follows ids[:t + 1].

        By prefill, or with decode_from=n the first n tokens so and each later one by a decode step, whose rows are
        -1e30 where the tokenizer has no token; nothing else is banned."""
        with self._alone():
            return self.runner.logits(requests.token_ids(ids, self.config.vocab), decode_from)

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
        with self._alone():
            vectors = encoder.embed(ids, cls=pooling == "cls")
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12) if normalize else vectors

    def close(self) -> None:
        """End the chat template's process and let go of the device's memory, once a stream still open has ended.

        Never raises; the LLM is of no use afterwards."""
        if isinstance(self._template, ChatTemplate):
            self._template.close()
        self._prepared = None

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- inside ---------------------------------------------------------------------------------------------------

    def _request(self, prompt: requests.Prompt, params: SamplingParams) -> Request:
        limits = requests.Limits(self.max_len, (self.runner.table.pages - 1) * PAGE)
        return requests.make(prompt, params, self.config, self.tokenizer, limits, lambda: self._random.getrandbits(64))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else runs on this LLM inside; RequestError if somebody does."""
        if not self._lock.acquire(blocking=False):
            raise RequestError("LLM: expected one call at a time, found another not ended")
        try:
            yield
        finally:
            self._lock.release()

    def _run(self, todo: list[Request]) -> Generator[tuple[Completion, int], None, None]:
        """Each token of the requests as it comes, with the completion it was added to."""
        owner = {c.seq: (request, c) for request in todo for c in request.completions}
        with self._alone():
            loop = Loop(self.runner)
            with closing(loop.run(list(owner))) as events:
                for event in events:
                    request, completion = owner[event.seq]
                    request.last = time.perf_counter()
                    request.first = request.first or request.last
                    completion.take(event)
                    if completion.text.stopped and event.seq.finish_reason is None:
                        loop.scheduler.finish(event.seq, "stop")
                    yield completion, event.token

    def _stream(self, request: Request, began: float) -> Chunks:
        given = 0
        with closing(self._run([request])) as tokens:
            for completion, token in tokens:
                text = completion.text
                output = request.output(began) if request.finished else None
                yield StreamChunk(text.full[given : text.settled], [token], output)
                given = text.settled


def generate(model: str | Path, prompt: str | list[str], **params: Any) -> str | list[str]:
    """Load a model, complete a prompt, and give back the text; a list of prompts gives a list of texts.

    params: fields of SamplingParams; those of EngineConfig and quiet go to LLM (seed to SamplingParams)."""
    sampling = {f.name for f in fields(SamplingParams)}
    request = SamplingParams(**{name: value for name, value in params.items() if name in sampling})
    with LLM(model, **{name: value for name, value in params.items() if name not in sampling}) as llm:
        texts = [output.text for output in llm.generate(prompt, request)]
    return texts[0] if isinstance(prompt, str) else texts


def _params(given: Params, prompts: int) -> list[SamplingParams]:
    """One SamplingParams for each prompt."""
    if given is None or isinstance(given, SamplingParams):
        return [given or SamplingParams()] * prompts
    if len(given) != prompts:
        raise RequestError(f"params: expected one, or one for each of the {prompts} prompts, found {len(given)}")
    return list(given)
