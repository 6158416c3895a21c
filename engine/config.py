"""Frozen dataclasses: the structure of a model, the options of the engine, the parameters of a request.

models/families makes a ModelConfig from a checkpoint's files. EngineConfig and SamplingParams check their fields in
__post_init__.
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
    """How RoPE frequencies are scaled beyond the training length."""

    kind: str  # "linear", "llama3", "yarn" or "longrope"
    factor: float = 1.0  # divisor of frequencies (or positions); longrope uses its lists instead
    low_freq_factor: float = 1.0  # llama3: wavelengths above original / low are fully scaled
    high_freq_factor: float = 4.0  # llama3: wavelengths below original / high are not scaled
    original_max_len: int = 8192  # llama3, yarn, longrope: training length
    beta_fast: float = 32.0  # yarn: frequencies with more turns within the training length are not scaled
    beta_slow: float = 1.0  # yarn: frequencies with fewer turns are divided by the factor
    truncate: bool = True  # yarn: round the bounds of the band in between to whole indices
    attention_factor: float = 1.0  # yarn, longrope: factor of cosines and sines
    short: tuple[float, ...] = ()  # longrope: divisors of the frequencies, up to the training length
    long: tuple[float, ...] = ()  # longrope: divisors beyond it


@dataclass(frozen=True)
class Rope:
    """The parameters of one RoPE table; layers with equal parameters share the table."""

    theta: float = 10000.0
    scaling: RopeScaling | None = None
    rotary: int = 0  # number of rotated elements of a head, the first ones; 0 = all
    interleaved: bool = False  # pairs are (2i, 2i + 1) instead of (i, i + rotary / 2)


@dataclass(frozen=True)
class LayerSpec:
    """One layer: all properties in which layers of one model, or of different models, may differ."""

    heads: int  # H   query heads
    kv_heads: int  # G   key/value heads, H % G == 0
    head_dim: int  # d
    ffn: int  # F
    window: int = 0  # sliding window: a token attends to this many tokens including itself; 0 = all
    rope: Rope | None = Rope()  # None: q and k are not rotated
    scale: float | None = None  # factor of attention scores; None = 1 / sqrt(d)
    residual_scale: float = 1.0  # factor of what attention and MLP add to the residual stream
    qkv_bias: bool = False  # q, k, v projections have a bias
    qk_norm: bool = False  # RMSNorm of each query and key head before RoPE
    activation: str = "silu"  # of the MLP: "silu" (gated), "gelu" (erf) or "gelu_tanh"

    @property
    def qkv(self) -> int:
        """Columns of the fused q, k, v projection: (H + 2 G) d."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim


@dataclass(frozen=True)
class ModelConfig:
    """The structure of a model, from config.json or GGUF metadata."""

    arch: str  # module of engine/models: "decoder", "gpt2" or "bert"
    layers: tuple[LayerSpec, ...]  # [L]
    hidden: int  # D
    vocab: int  # V   rows of the embedding table
    max_len: int  # T   maximum number of positions
    eps: float  # added to the mean square or variance in norms
    embed_scale: float = 1.0  # factor of embeddings
    logit_scale: float = 1.0  # factor of logits
    family: str = "llama"  # key of models/families, which has the tensor names
    causal: bool = True  # False: an encoder, in which a token attends to its whole sequence
    segments: int = 0  # BERT: rows of the segment table; every token uses row 0
    tied: bool = False  # the LM head is the embedding table
    dtype: str = "bfloat16"  # storage type of the checkpoint: "bfloat16", "float16" or "float32"
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()  # each of these tokens ends a sequence

    @property
    def layer_count(self) -> int:
        """L."""
        return len(self.layers)

    @property
    def sizes(self) -> LayerSpec:
        """A layer with the H, G, d and F of all layers. UnsupportedModel if they differ: activation buffers have rows
        of one length."""
        first = self.layers[0]
        for i, layer in enumerate(self.layers):
            for name in ("heads", "kv_heads", "head_dim", "ffn"):
                expected, found = getattr(first, name), getattr(layer, name)
                if found != expected:
                    raise UnsupportedModel(f"layer {i}: {name}: expected {expected}, as in layer 0, found {found}")
        return first

    def with_layers(self, **changes: Any) -> ModelConfig:
        """A copy with these fields changed in every layer."""
        return replace(self, layers=tuple(replace(layer, **changes) for layer in self.layers))


@dataclass(frozen=True)
class EngineConfig:
    """How the engine runs a model. RequestError names the first field that is out of range."""

    backend: str = "auto"  # "cuda", "cublas", "numpy"; "auto" uses cuda if it works, and reports the choice
    graph: str = "step"  # graph scope: "step", "layer" or "off"; NumPy records and replays calls instead
    dtype: str = "auto"  # storage type: "bfloat16", "float16", "float32"; "auto" is the checkpoint's
    max_batch: int = 16  # sequences decoded together; more than 16 run as groups of 16
    max_len: int | None = None  # tokens of a prompt and its completion; None = the model's maximum
    cache_tokens: int | None = None  # tokens in the KV cache; None = max_batch * max_len, less if memory is short
    gpu_memory: float | None = None  # limit of device memory: up to 1 a share, above 1 in GB; None = most of it
    swap_gb: float = 4.0  # GB of host memory for KV pages of preempted sequences, allocated when needed
    prefix_cache: bool = True  # keep KV pages of prompts for later prompts with the same prefix; not with cublas
    max_queue: int | None = None  # maximum number of waiting sequences; None = unlimited
    prefill_rows: int = 2048  # rows of one prefill or encoder pass, a multiple of 64
    seed: int | None = None  # seed of the generator that gives requests without a seed theirs; None = random
    nvtx: bool = False  # NVTX ranges for profilers, around operations, parts and graphs

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
    """A field that is also a command-line option with this help text."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Scheduling:
    """When a request runs, and which KV pages it may share. It does not affect the tokens. RequestError names the first
    field that is out of range."""

    priority: int = 0  # lower values start first and are preempted last
    timeout: float | None = None  # seconds until the request ends with its tokens so far; None = never
    key: str = ""  # client: at equal priority, requests of the key with the fewest running requests start first
    cache_salt: str = ""  # prompts share KV pages only with prompts of the same salt

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
    """The parameters of one request. RequestError names the first field that is out of range.

    A field that is also in the sampling rules (engine/ops/sampling.py) reaches the kernel under its name."""

    max_tokens: int | None = _option(None, "maximum number of tokens to generate (default: what fits)")
    temperature: float = _option(0.0, "0 (and below 1e-5) = always the most probable token (default), at most 2")
    top_p: float = _option(1.0, "sample from the fewest tokens whose probabilities reach this sum (1 = off)")
    top_k: int = _option(0, "sample from this many most probable tokens (0 or -1 = off)")
    min_p: float = _option(0.0, "drop tokens less probable than this times the most probable one (0 = off)")
    repetition_penalty: float = _option(1.0, "divides positive logits of seen tokens, multiplies others (1 = off)")
    presence_penalty: float = _option(0.0, "subtracted from the logit of every generated token (0 = off)")
    frequency_penalty: float = _option(0.0, "subtracted once for each time a token was generated (0 = off)")
    seed: int | None = _option(None, "same seed, same text")  # same seed, same text in any batch; None = random
    stop: tuple[str, ...] | list[str] | str | None = field(
        default=(), metadata={"help": "end before this text; may be given several times"}
    )  # texts that end the output and are not in it; kept as a tuple
    stop_token_ids: tuple[int, ...] | list[int] | None = ()  # more end tokens, beside the model's; kept as a tuple
    ignore_eos: bool = _option(False, "continue after the model's end token")
    min_tokens: int = _option(0, "do not end before this many tokens")
    logprobs: int | None = None  # report this many most probable tokens for each generated token; None = none
    n: int = 1  # outputs per prompt

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

        RequestError if one is outside the vocabulary, or if there are more than STOP_IDS."""
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
    """Set a field of a frozen dataclass to its checked value; for __post_init__ only."""
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
