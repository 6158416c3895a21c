"""A checkpoint of any format: its config, and its tensors by their Hugging Face names.

Opening reads headers and metadata. A tensor stays in the memory-mapped file until it is asked for. A quantisation scale
that is NaN or infinite is refused when it is decoded. NaN and infinity in a tensor of plain numbers are not looked for:
they reach the logits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, found
from . import safetensors, split
from .files import is_gguf, is_listed, let_go, read_json
from .methods import joined
from .quantised import Quantised
from .tensor import Tensor
from .translate import translate


class Checkpoint:
    """An open checkpoint. Arrays that it returned stay valid after `close`: they keep the file mapped."""

    def __init__(
        self,
        source: Path,
        tensors: dict[str, Tensor],
        config: dict[str, Any],
        generation_config: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
        directory: Path | None = None,
    ) -> None:
        self.source = source  # the path that was opened, for messages
        self.config = config  # config.json, or the same made from GGUF metadata; values are not checked here
        self.generation_config = generation_config or {}  # generation_config.json
        self.metadata = metadata  # GGUF metadata
        self.directory = directory  # where tokenizer.json and the chat template are, unless GGUF
        self._tensors: dict[str, Tensor] | None = tensors

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __contains__(self, name: str) -> bool:
        return name in self._open()

    def close(self) -> None:
        """Close the files. Asking for a tensor afterwards raises CheckpointError."""
        self._tensors = None

    def names(self) -> list[str]:
        """Hugging Face names of all tensors, in the order of the file."""
        return list(self._open())

    def shape(self, name: str) -> tuple[int, ...]:
        """Sizes of a tensor, [out, in] for a matrix."""
        return self._tensor(name).shape

    def stored(self, name: str) -> str:
        """The type of a tensor in the file: "F32", "BF16", "Q4_1", ..."""
        return self._tensor(name).kind

    def dtype(self, name: str) -> np.dtype:
        """The dtype that `tensor` returns: float32, float16 or bfloat16. UnsupportedModel if it cannot be read."""
        return self._tensor(name).dtype

    def tensor(self, name: str) -> np.ndarray:
        """A tensor [shape]: a read-only view of the file for F32, F16 and BF16; new float32 if it is quantised."""
        return self._tensor(name).numbers()

    def quantised(self, name: str) -> Quantised | None:
        """A quantised matrix as the file stores it; None for a tensor of plain numbers."""
        return self._tensor(name).stored()

    def spans(self, name: str) -> tuple[np.ndarray, ...]:
        """The stored bytes of a tensor, each [n] uint8, a view of a file: several where several entries form it."""
        return self._tensor(name).spans

    def let_go(self, name: str) -> None:
        """Free the memory of the file's pages that hold a tensor. They are read again if the tensor is used again."""
        for span in self._tensor(name).spans:
            let_go(span)

    def _open(self) -> dict[str, Tensor]:
        if self._tensors is None:
            raise CheckpointError(f"{self.source}: the checkpoint is closed")
        return self._tensors

    def _tensor(self, name: str) -> Tensor:
        try:
            return self._open()[name]
        except KeyError:
            raise CheckpointError(f"{self.source}: tensor {name} is missing") from None


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Open a Hugging Face directory (config.json, safetensors), a GGUF file, or a directory with one GGUF model.

    Any part of a GGUF model in several files stands for all of them.

    CheckpointError if it is damaged or incomplete, UnsupportedModel if the engine cannot run it."""
    path = Path(path)
    if path.is_dir():
        inside = split.find_file(path)
        return _open_directory(path) if inside is None else _open_gguf(inside)
    if not is_gguf(path):
        raise CheckpointError(f"{path}: expected a directory or a .gguf file, found {_found(path)}")
    return _open_gguf(path)


def _open_directory(path: Path) -> Checkpoint:
    generation = path / "generation_config.json"
    config, tensors = joined(path, read_json(path / "config.json"), safetensors.read_directory(path))
    return Checkpoint(
        path,
        config=config,
        tensors=tensors,
        generation_config=read_json(generation) if is_listed(generation) else None,
        directory=path,
    )


def _open_gguf(path: Path) -> Checkpoint:
    file = split.read_model(path)
    config, tensors = translate(path, file)
    return Checkpoint(path, tensors, config, metadata=file.metadata)


def _found(path: Path) -> str:
    if not path.exists():
        return "nothing there"
    return "a file" + (f" ending {found(path.suffix)}" if path.suffix else "")
