"""What a model is, how the engine runs it, and what one request asks for: three frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are changed to reach beyond the training length."""

    kind: str  # "linear" or "llama3"
    factor: float  # frequencies (or positions) are divided by this
    low_freq_factor: float = 1.0  # llama3 only: wavelengths above original / low are fully scaled
    high_freq_factor: float = 4.0  # llama3 only: wavelengths below original / high are left alone
    original_max_len: int = 8192  # llama3 only: training length


@dataclass(frozen=True)
class ModelConfig:
    """Read once from config.json or GGUF metadata; never changed."""

    arch: str  # module in engine/models: "decoder"
    layers: int  # L
    hidden: int  # D
    heads: int  # H   query heads
    kv_heads: int  # G   key/value heads, H % G == 0
    head_dim: int  # d
    ffn: int  # F
    vocab: int  # V   rows of the embedding table
    max_len: int  # T   positions the model was made for
    eps: float  # added to the mean square in the norms
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False  # Qwen2: q, k, v projections have a bias
    qk_norm: bool = False  # Qwen3: RMS-normalise each head of q and k before RoPE
    window: int = 0  # Mistral: a token sees this many tokens, itself included; 0 = all
    tied: bool = False  # the head is the embedding table
    dtype: str = "bfloat16"  # what the checkpoint stores: "bfloat16", "float16" or "float32"
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()  # any of these ends a sequence

    @property
    def qkv(self) -> int:
        """Columns of the fused q, k, v projection: (H + 2 G) d."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim
