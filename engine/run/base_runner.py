"""The base of Runner and Encoder: operations, with NVTX ranges on request, and passes prepared for some sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from ..config import EngineConfig, ModelConfig
from ..errors import RequestError
from ..graph import nvtx
from ..graph.capture import Program
from ..models.weights import Weights
from ..ops.base import Ops
from ..ops.device import Device

B = TypeVar("B")  # what a pass of one size works on
Progress = Callable[[int, int], None]  # called with (done, all)


def silent(done: int, all: int) -> None:
    """A Progress that does nothing."""


class BaseRunner(Generic[B]):
    """One model on one device. A bucket is a prepared pass of a number of rows; it also runs fewer."""

    def __init__(self, ops: Ops, c: ModelConfig, w: Weights, e: EngineConfig, causal: bool) -> None:
        """RequestError if the model is of the other kind (see expect_kind), or if e.max_len exceeds the positions of
        the model or of its weights."""
        expect_kind(c, causal)
        self.ops: Any
        self._program: Callable[..., Program]
        self.ops, self._program = nvtx.prepared(ops, e.nvtx)
        self.c, self.w, self.max_len = c, w, longest(c, e)
        if self.max_len > w.max_len:
            raise RequestError(f"max_len: expected at most {w.max_len}, which weights were loaded for, "
                               f"found {self.max_len}")  # fmt: skip
        self.device: Device = ops.device
        self._buckets: dict[int, B] = {}

    @property
    def buckets(self) -> tuple[int, ...]:
        """Row counts of the prepared passes, ascending."""
        return tuple(self._buckets)

    def synchronize(self) -> None:
        """Wait for the device; DeviceError if something failed on it."""
        self.device.synchronize()

    def _bucket_of(self, rows: int) -> B:
        """The smallest bucket that holds so many rows."""
        return next(bucket for size, bucket in self._buckets.items() if size >= rows)


def each(jobs: Iterable[Callable[[], None]], progress: Progress) -> None:
    """Run the jobs in order; report progress before each and after the last."""
    jobs = list(jobs)
    for done, job in enumerate(jobs):
        progress(done, len(jobs))
        job()
    progress(len(jobs), len(jobs))


def expect_kind(c: ModelConfig, causal: bool) -> None:
    """RequestError unless the model is a decoder (causal), or an encoder."""
    if causal and not c.causal:
        raise RequestError(f"model: expected a decoder, which generates text, found an encoder ({c.arch}), "
                           "which embeds it")  # fmt: skip
    if c.causal and not causal:
        raise RequestError(f"model: expected an encoder, which embeds text, found a decoder ({c.arch}), "
                           "which has no pooling of its own")  # fmt: skip


def longest(c: ModelConfig, e: EngineConfig) -> int:
    """Tokens of the longest sequence. RequestError if e.max_len exceeds the model's positions."""
    if e.max_len is not None and e.max_len > c.max_len:
        raise RequestError(f"max_len: expected at most {c.max_len}, what the model was made for, found {e.max_len}")
    return e.max_len or c.max_len
