"""Typed reading of a checkpoint's JSON: a value comes back in range and of its type, or an error names file and key.

Used by hf_config.py and hf_rope.py only; touches nothing.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

from .checks import found
from .errors import CheckpointError, UnsupportedModel

LIMITS = {  # sizes beyond these are damage, not models
    "num_hidden_layers": 1024,
    "hidden_size": 2**17,
    "num_attention_heads": 2**12,
    "num_key_value_heads": 2**12,
    "head_dim": 2**10,
    "intermediate_size": 2**20,
    "vocab_size": 2**22,
    "max_position_embeddings": 2**24,
}
DTYPES = ("bfloat16", "float16", "float32")


class Keys:
    """A JSON object and the name it goes by in messages."""

    def __init__(self, values: Any, name: str):
        self.name = name
        if not isinstance(values, dict):
            raise CheckpointError(f"{name}: expected a JSON object, found {found(values)}")
        self.values: dict[str, Any] = values

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it is; default when the key is absent or null."""
        value = self.values.get(key)
        return default if value is None else value

    def wrong(self, key: str, expected: str, value: Any) -> NoReturn:
        """Raise CheckpointError: the file is damaged or contradicts itself."""
        what = found(value) if value is not None or key in self.values else "nothing"
        raise CheckpointError(f"{self.name}: {key}: expected {expected}, found {what}")

    def unsupported(self, key: str, expected: str, value: Any) -> NoReturn:
        """Raise UnsupportedModel: the file is sound, the engine lacks what it asks for."""
        raise UnsupportedModel(f"{self.name}: {key}: not supported: expected {expected}, found {found(value)}")

    def integer(self, key: str, low: int, high: int) -> int:
        """An integer in [low, high]: no boolean, no fraction, not even 8.0."""
        value = self.get(key)
        if type(value) is not int or not low <= value <= high:
            self.wrong(key, f"an integer in [{low}, {high}]", value)
        return value

    def real(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A finite number in (low, high]."""
        value = self.get(key, default)
        if type(value) not in (int, float) or not low < value <= high or not math.isfinite(value):
            self.wrong(key, f"a number in ({low:g}, {high:g}]", value)
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false; default when absent or null."""
        value = self.get(key, default)
        if type(value) is not bool:
            self.wrong(key, "true or false", value)
        return value

    def token_ids(self, key: str, vocab: int) -> tuple[int, ...]:
        """Token ids in [0, vocab) from an integer, a list of them, or nothing."""
        value = self.get(key, [])
        ids = value if isinstance(value, list) else [value]
        for i in ids:
            if type(i) is not int or not 0 <= i < vocab:
                self.wrong(key, f"token ids in [0, {vocab})", value)
        return tuple(ids)

    def dtype(self) -> str:
        """What the tensors are stored as: dtype, or torch_dtype as it was called before; float32 without either."""
        names = {key: str(self.get(key)).removeprefix("torch.") for key in ("dtype", "torch_dtype") if self.get(key)}
        for key, name in names.items():
            if name not in DTYPES:
                self.unsupported(key, f"one of {', '.join(DTYPES)}", self.get(key))
        if len(set(names.values())) > 1:
            self.wrong("dtype", f"the same as torch_dtype = {names['torch_dtype']}", names["dtype"])
        return next(iter(names.values()), "float32")
