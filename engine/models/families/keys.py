"""Typed reading of a checkpoint's JSON: a value comes back in range and of its type, or an error names file and key."""

from __future__ import annotations

import math
import re
from typing import Any, NoReturn

from ...checks import found
from ...errors import CheckpointError, UnsupportedModel

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
# Keys that concern training, other programs or text, and never the numbers of a forward pass.
HARMLESS = re.compile(
    r"_.*|architectures|model_type|transformers(_version|\.js_config)|torch_dtype|dtype|auto_map|name_or_path"
    r"|(pad|sep|cls|unk|mask|decoder_start|forced_[be]os)_token_id|\w+_token_(index|id)|initializer_range|init_std|use_cache"
    r"|(\w*_)?(dropout|pdrop)(_prob)?|classifier_dropout|output_\w+|router_aux_loss_coef|gradient_checkpointing"
    r"|pretraining_tp|return_dict|torchscript|use_bfloat16|id2label|label2id|finetuning_task|task_specific_params"
    r"|problem_type|summary_\w+|is_encoder_decoder|is_decoder|chunk_size_feed_forward|tokenizer_class|prefix"
    r"|unsloth_\w+|is_llama_config|language|license|keys_to_ignore_at_inference",
    re.ASCII,
)


class Keys:
    """A JSON object and the name it goes by in messages. It remembers which keys were read."""

    def __init__(self, values: Any, name: str):
        self.name = name
        if not isinstance(values, dict):
            raise CheckpointError(f"{name}: expected a JSON object, found {found(values)}")
        self.values: dict[str, Any] = values
        self._read: set[str] = set()
        self._inner: dict[str, Keys] = {}

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it is; default when the key is absent or null."""
        self._read.add(key)
        value = self.values.get(key)
        return default if value is None else value

    def inner(self, key: str) -> Keys:
        """The JSON object under a key."""
        self._read.add(key)
        if key not in self._inner:
            self._inner[key] = Keys(self.values.get(key), f"{self.name}: {key}")
        return self._inner[key]

    def skip(self, *names: str) -> None:
        """These keys change nothing here."""
        self._read.update(names)

    def unread(self) -> list[str]:
        """Keys that nobody asked for and that may matter, "a" or "a.b", sorted."""
        own = [key for key in self.values if key not in self._read and not HARMLESS.fullmatch(key)]
        return sorted(own + [f"{key}.{name}" for key, keys in self._inner.items() for name in keys.unread()])

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

    def reals(self, key: str, low: float, high: float, count: int) -> tuple[float, ...]:
        """A list of so many finite numbers in (low, high]."""
        values = self.get(key)
        if not isinstance(values, list) or len(values) != count:
            self.wrong(key, f"a list of {count} numbers", values)
        if any(type(v) not in (int, float) or not low < v <= high or not math.isfinite(v) for v in values):
            self.wrong(key, f"numbers in ({low:g}, {high:g}]", values)
        return tuple(map(float, values))

    def flag(self, key: str, default: bool) -> bool:
        """True or false; default when absent or null."""
        value = self.get(key, default)
        if type(value) is not bool:
            self.wrong(key, "true or false", value)
        return value

    def neutral(self, key: str, values: tuple[Any, ...]) -> None:
        """UnsupportedModel unless the key has one of these values, or is absent."""
        value = self.flag(key, values[0]) if type(values[0]) is bool else self.get(key, values[0])
        if value not in values:
            self.unsupported(key, _either(values), value)

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


def _either(values: tuple[Any, ...]) -> str:
    """The values as JSON writes them: false; silu or swish."""
    words = {None: "null", False: "false", True: "true"}
    return " or ".join(words[v] if v is None or type(v) is bool else str(v) for v in values)
