"""What a model is, how the engine runs it, and what one request asks for: frozen dataclasses.

What a checkpoint's files say becomes a ModelConfig in models/families. The fields of an EngineConfig and of a
SamplingParams are in range: __post_init__ refuses the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from .checks import choice, flag, integer, real, refuse, unicode
from .errors import RequestError, UnsupportedModel
from .sizes import MAX_BATCH, PAGE, STOP_IDS

INT32 = 2**31 - 1  # the arrays that these numbers end up in are int32


BACKENDS = ("auto", "cuda", "cublas", "numpy")
GRAPHS = ("step", "layer", "off")
DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are changed to reach beyond the training length."""

    kind: str  # "linear", "llama3", "yarn" or "longrope"
    factor: float = 1.0  # frequencies (or positions) are divided by this; longrope: not used, its lists are
    low_freq_factor: float = 1.0  # llama3: wavelengths above original / low are fully scaled
    high_freq_factor: float = 4.0  # llama3: wavelengths below original / high are left alone
    original_max_len: int = 8192  # llama3, yarn, longrope: training length
    beta_fast: float = 32.0  # yarn: frequencies of more turns than this within the training length are left alone
    beta_slow: float = 1.0  # yarn: those of fewer turns are divided by the factor
    truncate: bool = True  # yarn: the band between the two begins and ends at whole frequencies
    attention_factor: float = 1.0  # yarn, longrope: cosines and sines are multiplied by this
    short: tuple[float, ...] = ()  # longrope: divisors of the frequencies, up to the training length
    long: tuple[float, ...] = ()  # longrope: divisors beyond it


@dataclass(frozen=True)
class Rope:
    """One table of rotary angles, for the layers that name it."""

    theta: float = 10000.0
    scaling: RopeScaling | None = None
    rotary: int = 0  # elements of a head that turn, the first ones; 0 = all
    interleaved: bool = False  # pairs are neighbours (2i, 2i + 1), not (i, i + rotary / 2)


@dataclass(frozen=True)
class LayerSpec:
    """What one layer is: everything in which layers of a model, or of two models, may differ."""

    heads: int  # H   query heads
    kv_heads: int  # G   key/value heads, H % G == 0
    head_dim: int  # d
    ffn: int  # F
    window: int = 0  # a token sees this many tokens, itself included; 0 = all
    rope: Rope | None = Rope()  # None: q and k are not turned
    scale: float | None = None  # scores are multiplied by this; None = 1 / sqrt(d)
    residual_scale: float = 1.0  # what attention and MLP add to the residual stream is multiplied by this
    qkv_bias: bool = False  # q, k, v projections have a bias
    qk_norm: bool = False  # each head of q and k is RMS-normalised before RoPE
    activation: str = "silu"  # of the MLP: "silu", which gates; "gelu", by the error function; "gelu_tanh"

    @property
    def qkv(self) -> int:
        """Columns of the fused q, k, v projection: (H + 2 G) d."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim


@dataclass(frozen=True)
class ModelConfig:
    """Read once from config.json or GGUF metadata; never changed."""

    arch: str  # the mathematics, a module in engine/models: "decoder", "gpt2" or "bert"
    layers: tuple[LayerSpec, ...]  # L of them
    hidden: int  # D
    vocab: int  # V   rows of the embedding table
    max_len: int  # T   positions the model was made for
    eps: float  # added to the mean square, or to the variance, in the norms
    embed_scale: float = 1.0  # embeddings are multiplied by this
    logit_scale: float = 1.0  # logits are multiplied by this
    family: str = "llama"  # whose names the tensors have: see models/families
    causal: bool = True  # a token sees those before it; False: an encoder, where it sees its whole sequence
    segments: int = 0  # BERT: rows of the segment table, of which every token has row 0
    tied: bool = False  # the head is the embedding table
    dtype: str = "bfloat16"  # what the checkpoint stores: "bfloat16", "float16" or "float32"
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()  # any of these ends a sequence

    @property
    def layer_count(self) -> int:
        """L."""
        return len(self.layers)

    @property
    def sizes(self) -> LayerSpec:
        """A layer with the H, G, d and F of all of them. UnsupportedModel where they differ: activations share
        buffers, whose rows have one length."""
        first = self.layers[0]
        for i, layer in enumerate(self.layers):
            for name in ("heads", "kv_heads", "head_dim", "ffn"):
                expected, found = getattr(first, name), getattr(layer, name)
                if found != expected:
                    raise UnsupportedModel(f"layer {i}: {name}: expected {expected}, as in layer 0, found {found}")
        return first

    def with_layers(self, **changes: Any) -> ModelConfig:
        """The same with these fields of every layer changed."""
        return replace(self, layers=tuple(replace(layer, **changes) for layer in self.layers))


@dataclass(frozen=True)
class EngineConfig:
    """How the engine runs a model; RequestError names the first field that is out of range."""

    backend: str = "auto"  # "cuda", "cublas", "numpy"; "auto" takes cuda where it works and says so
    graph: str = "step"  # what a CUDA graph covers: "step", "layer" or "off" for none; NumPy has no graphs
    dtype: str = "auto"  # weights and activations: "bfloat16", "float16", "float32"; "auto" is the checkpoint's
    max_batch: int = 16  # sequences decoded at once; above 16 in groups of 16, which is what a decode kernel takes
    max_len: int | None = None  # tokens of a prompt and its completion; None = what the model was made for
    cache_tokens: int | None = (
        None  # tokens the whole KV cache holds; None = max_batch * max_len, or what memory allows
    )
    gpu_memory: float | None = None  # device memory the model may take in all: a share up to 1, above 1 GB; None = most
    swap_gb: float = 4.0  # GB of host memory for the KV pages of preempted sequences; taken when it is needed
    prefix_cache: bool = True  # keep the KV pages of prompts for later ones that begin alike; not with cublas
    max_queue: int | None = None  # sequences that may wait beside those that run; None = any number
    prefill_rows: int = 2048  # rows of one pass over prompts or texts, a multiple of 64
    seed: int | None = None  # where requests without a seed of their own draw it from; None = fresh
    nvtx: bool = False  # named ranges for CUDA profilers: parts and operations run eagerly, graphs replayed

    def __post_init__(self) -> None:
        choice("backend", self.backend, BACKENDS)
        choice("graph", self.graph, GRAPHS)
        choice("dtype", self.dtype, DTYPES)
        _set(self, "max_batch", integer("max_batch", self.max_batch, 1, MAX_BATCH))
        if self.max_len is not None:
            _set(self, "max_len", integer("max_len", self.max_len, 1, INT32))
        if self.cache_tokens is not None:
            _set(self, "cache_tokens", integer("cache_tokens", self.cache_tokens, 1, INT32))
        if self.gpu_memory is not None:
            _set(self, "gpu_memory", real("gpu_memory", self.gpu_memory, 0, 1e6, open_low=True))
        _set(self, "swap_gb", real("swap_gb", self.swap_gb, 0, 1e6))
        flag("prefix_cache", self.prefix_cache)
        if self.max_queue is not None:
            _set(self, "max_queue", integer("max_queue", self.max_queue, 0, INT32))
        _set(self, "prefill_rows", integer("prefill_rows", self.prefill_rows, PAGE, 2**16))
        if self.prefill_rows % PAGE:
            refuse("prefill_rows", f"a multiple of {PAGE}", self.prefill_rows)
        if self.seed is not None:
            _set(self, "seed", integer("seed", self.seed, 0, 2**64 - 1))
        flag("nvtx", self.nvtx)


def _option(default: Any, text: str) -> Any:
    """A field that is an option of the command line as well: --help says the text of it."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Scheduling:
    """When a request runs, and whose KV pages it may share; never which tokens it gets. RequestError names the first
    field that is out of range."""

    priority: int = 0  # lower ones begin first, and are preempted last
    timeout: float | None = None  # seconds after which it ends with what it has, waiting or running; None = never
    key: str = ""  # who asks: of equal priority, requests of the key of which the fewest run begin first
    cache_salt: str = ""  # prompts share KV pages with those of the same salt only

    def __post_init__(self) -> None:
        _set(self, "priority", integer("priority", self.priority, -INT32, INT32))
        if self.timeout is not None:
            _set(self, "timeout", real("timeout", self.timeout, 0, 1e9))
        for name in ("key", "cache_salt"):
            if not isinstance(value := getattr(self, name), str):
                refuse(name, "a string", value)
            unicode(name, value)


@dataclass(frozen=True)
class SamplingParams:
    """What one request asks for; RequestError names the first field that is out of range.

    What is a field of the sampling rules too (engine/ops/sampling.py) reaches the kernel by its name."""

    max_tokens: int | None = _option(None, "tokens to generate at most (default: what fits)")
    temperature: float = _option(0.0, "0 (and below 1e-5) = always the most probable token (default), at most 2")
    top_p: float = _option(1.0, "sample from the fewest tokens whose probabilities reach this (1 = off)")
    top_k: int = _option(0, "sample from this many most probable tokens (0 or -1 = off)")
    min_p: float = _option(0.0, "drop tokens less probable than this times the most probable one (0 = off)")
    repetition_penalty: float = _option(1.0, "divides positive logits of tokens seen, multiplies others (1 = off)")
    presence_penalty: float = _option(0.0, "taken off the logit of every token generated before (0 = off)")
    frequency_penalty: float = _option(0.0, "taken off once for each time a token was generated (0 = off)")
    # Whatever else is in the batch; None = fresh.
    seed: int | None = _option(None, "same seed, same text")
    # Not part of the output; kept as a tuple.
    stop: tuple[str, ...] | list[str] | str | None = field(
        default=(), metadata={"help": "end before this text; may be given several times"}
    )
    # Tokens that end the output beside the model's own; kept as a tuple.
    stop_token_ids: tuple[int, ...] | list[int] | None = ()
    ignore_eos: bool = _option(False, "go on after the model's end token")
    min_tokens: int = _option(0, "no end before this many tokens were generated")
    logprobs: int | None = None  # report this many most probable tokens for each one generated; None = none
    n: int = 1  # outputs for each prompt

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            _set(self, "max_tokens", integer("max_tokens", self.max_tokens, 1, INT32))
        temperature = real("temperature", self.temperature, 0, 2)
        _set(self, "temperature", temperature if temperature >= 1e-5 else 0.0)  # dividing by less overflows float32
        _set(self, "top_p", real("top_p", self.top_p, 0, 1, open_low=True))
        _set(self, "top_k", max(integer("top_k", self.top_k, -1, INT32), 0))
        _set(self, "min_p", real("min_p", self.min_p, 0, 1))
        _set(self, "repetition_penalty", real("repetition_penalty", self.repetition_penalty, 0.01, 100))
        _set(self, "presence_penalty", real("presence_penalty", self.presence_penalty, -2, 2))
        _set(self, "frequency_penalty", real("frequency_penalty", self.frequency_penalty, -2, 2))
        if self.seed is not None:
            _set(self, "seed", integer("seed", self.seed, 0, 2**64 - 1))
        _set(self, "stop", _stop(self.stop))
        _set(self, "stop_token_ids", _stop_token_ids(self.stop_token_ids))
        flag("ignore_eos", self.ignore_eos)
        _set(self, "min_tokens", integer("min_tokens", self.min_tokens, 0, INT32))
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            refuse("min_tokens", f"at most max_tokens, which is {self.max_tokens}", self.min_tokens)
        if self.logprobs is not None:
            _set(self, "logprobs", integer("logprobs", self.logprobs, 0, 20))
        _set(self, "n", integer("n", self.n, 1, 1024))

    def stop_ids(self, config: ModelConfig) -> tuple[int, ...]:
        """The tokens that end this request: its own, then the model's unless ignore_eos.

        RequestError when one is outside the vocabulary, or when there are more than the device arrays hold."""
        own = tuple(
            integer(f"stop_token_ids[{i}]", t, 0, config.vocab - 1) for i, t in enumerate(self.stop_token_ids or ())
        )
        eos = () if self.ignore_eos else config.eos_ids
        ids = tuple(dict.fromkeys(own + eos))
        if len(ids) > STOP_IDS:
            limit = f"at most {STOP_IDS} stop tokens, the model's own {list(eos)} included"
            raise RequestError(f"stop_token_ids: expected {limit}, found {len(ids)}")
        return ids


def _set(record: Any, field: str, value: Any) -> None:
    """Put a field of a frozen dataclass into its final type, from __post_init__ only."""
    object.__setattr__(record, field, value)


def _stop(value: Any) -> tuple[str, ...]:
    texts = () if value is None else (value,) if isinstance(value, str) else value
    if not isinstance(texts, (tuple, list)):
        refuse("stop", "a string or a list of strings", value)
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text:
            refuse(f"stop[{i}]", "a string that is not empty", text)
        unicode(f"stop[{i}]", text)
    return tuple(dict.fromkeys(texts))


def _stop_token_ids(value: Any) -> tuple[int, ...]:
    ids = () if value is None else value
    if not isinstance(ids, (tuple, list)):
        refuse("stop_token_ids", "a list of token ids", value)
    return tuple(dict.fromkeys(integer(f"stop_token_ids[{i}]", t, 0, INT32) for i, t in enumerate(ids)))
