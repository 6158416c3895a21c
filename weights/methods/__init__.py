"""Quantised safetensors: each file here is a method, found by quant_method of config.json's quantization_config.

A module X of such a checkpoint has several entries, X.qweight, X.scales, ... `joined` puts one tensor X.weight in their
place when the checkpoint is opened, so that the engine sees the names of an unquantised model. Which modules are
quantised is what their tensors show. A key of the configuration that may change numbers is known or refused by name.

module    the entries of one module, and the checks of their types and shapes
method    what a method is: add a subclass to METHODS
packed, bytewise   matrices that methods share
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, UnsupportedModel
from ...keys import Keys
from ..files import is_listed, read_json
from ..tensor import Tensor
from .awq import Awq
from .bitsandbytes import BitsAndBytes
from .compressed import CompressedTensors
from .fp8 import Fp8
from .gptq import Gptq
from .method import Method
from .modelopt import ModelOpt
from .module import Joined, Module

METHODS: dict[str, type[Method]] = {  # by quant_method
    "gptq": Gptq, "awq": Awq, "compressed-tensors": CompressedTensors, "fp8": Fp8, "fbgemm_fp8": Fp8,
    "modelopt": ModelOpt, "bitsandbytes": BitsAndBytes,
}  # fmt: skip
KEYS = ("quantization_config", "compression_config")  # of config.json
BITS_AND_BYTES = ("load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit")  # no quant_method in older files
FILES = {  # beside config.json, and whose they are
    "quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt",
}  # fmt: skip

_log = logging.getLogger("ostinato")


def joined(
    directory: Path, config: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration without its quantisation, and the tensors with one X.weight for each quantised module.

    Both as they are where nothing is quantised. UnsupportedModel names a method or key that is not known;
    CheckpointError file and tensor that do not fit."""
    keys, method = _settings(directory, config)
    if keys is None:
        return config, tensors
    if method not in METHODS:
        keys.unsupported("quant_method", ", ".join(METHODS), method)
    reader = METHODS[method](keys)
    if unread := keys.unread(reader.harmless):
        raise UnsupportedModel(f"{keys.name}: not known, and may change numbers: {', '.join(unread)[:200]}")
    if reader.activations:
        _log.warning("%s: activations are not quantised, so sums are more exact than the file asks for", directory)
    return _without(config), dict(_joined(reader, tensors, keys))


def _settings(directory: Path, config: dict[str, Any]) -> tuple[Keys | None, str]:
    """The keys of the quantisation and the name of its method; None where there are none."""
    text = config.get("text_config")  # of a model that also sees
    for holder, where in ((config, ""), (text if isinstance(text, dict) else {}, "text_config: ")):
        for key in KEYS:
            if holder.get(key) is not None:
                keys = Keys(holder[key], f"{directory / 'config.json'}: {where}{key}")
                return keys, _method(keys, "compressed-tensors" if key == KEYS[1] else None)
    for name, method in FILES.items():
        if is_listed(directory / name):
            keys = Keys(read_json(directory / name), str(directory / name))
            return keys, _method(keys, method)
    return None, ""


def _without(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without its quantisation."""
    rest = {k: v for k, v in config.items() if k not in KEYS}
    return {k: _without(v) if k == "text_config" and isinstance(v, dict) else v for k, v in rest.items()}


def _method(keys: Keys, default: str | None) -> str:
    method = keys.get("quant_method", default)
    if method is None and any(keys.get(key) is True for key in BITS_AND_BYTES):
        method = "bitsandbytes"
    if not isinstance(method, str):
        keys.wrong("quant_method", f"one of {', '.join(METHODS)}", method)
    return method


def _joined(method: Method, tensors: dict[str, Tensor], keys: Keys) -> Iterator[tuple[str, Tensor]]:
    """The tensors in the order of the file, each quantised matrix where the first of its entries is."""
    modules, rest = _modules(method, tensors)
    quantised = {name for name, m in modules.items() if method.quantised(m)}
    if not quantised:
        raise CheckpointError(f"{keys.name}: expected tensors such as X.{', X.'.join(method.entries[:3])}, found none")
    done: set[str] = set()
    for name, tensor in tensors.items():
        stem = rest.get(name)
        if stem is None:
            yield name, tensor
        elif stem not in quantised:
            if not name.endswith(tuple("." + suffix for suffix in method.ignored)):
                yield name, tensor
        elif stem not in done:
            done.add(stem)
            yield f"{stem}.weight", _matrix(method, modules[stem], tensors)


def _modules(method: Method, tensors: dict[str, Tensor]) -> tuple[dict[str, Module], dict[str, str]]:
    """Modules by name, and the module of each tensor that belongs to one."""
    suffixes = "|".join(re.escape(suffix) for suffix in (*method.entries, *method.ignored))
    pattern = re.compile(rf"(.+)\.({suffixes})", re.ASCII)
    modules: dict[str, Module] = {}
    of: dict[str, str] = {}
    for name, tensor in tensors.items():
        if match := pattern.fullmatch(name):
            stem, suffix = match.groups()
            of[name] = stem
            module = modules.setdefault(stem, Module(stem, {}))
            if suffix not in method.ignored:
                module.entries[suffix] = tensor
    return modules, of


def _matrix(method: Method, m: Module, tensors: dict[str, Tensor]) -> Joined:
    if "weight" not in m and f"{m.name}.weight" in tensors:
        raise CheckpointError(f"{tensors[f'{m.name}.weight'].file}: tensor {m.name}.weight: expected no such tensor "
                              f"beside {m.name}.{next(iter(m.entries))}")  # fmt: skip
    matrix = method.matrix(m)
    for suffix in m.entries.keys() - m.read:
        m.wrong(suffix, f"no such tensor of a {matrix.kind} matrix", "one")
    first = next(iter(m.entries.values()))
    return Joined(
        first.file, f"{m.name}.weight", matrix.kind, matrix.shape, first.raw,
        matrix=matrix, entries=tuple(m.entries.values()),
    )  # fmt: skip
