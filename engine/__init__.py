"""ostinato: a small-batch transformer engine of hand-written CUDA kernels replayed as CUDA graphs.

Names that need NumPy or tokenizers are imported on first use. This file runs before any other of the package, and the
`ostinato` command must react to Ctrl-C before it spends time on imports; so not even typing is imported here.
"""

from .errors import (
    CacheFull,
    CaptureError,
    CheckpointError,
    DeviceError,
    DownloadError,
    EngineError,
    QueueFull,
    RequestError,
    TokenizerError,
    UnsupportedModel,
)

TYPE_CHECKING = False  # type checkers assume True
if TYPE_CHECKING:
    from typing import Any

    from .async_llm import AsyncLLM
    from .config import EngineConfig, ModelConfig, SamplingParams, Scheduling
    from .llm import LLM, generate
    from .outputs import CompletionOutput, RequestOutput, StreamChunk
    from .stream import AsyncStream, Stream

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 - in the order of sorted()
    "AsyncLLM",
    "AsyncStream",
    "CacheFull",
    "CaptureError",
    "CheckpointError",
    "CompletionOutput",
    "DeviceError",
    "DownloadError",
    "EngineConfig",
    "EngineError",
    "LLM",
    "ModelConfig",
    "QueueFull",
    "RequestError",
    "RequestOutput",
    "SamplingParams",
    "Scheduling",
    "Stream",
    "StreamChunk",
    "TokenizerError",
    "UnsupportedModel",
    "__version__",
    "generate",
]

_MODULES = {
    "EngineConfig": "config", "ModelConfig": "config", "SamplingParams": "config",
    "Scheduling": "config", "LLM": "llm", "generate": "llm",
    "CompletionOutput": "outputs", "RequestOutput": "outputs", "StreamChunk": "outputs",
    "AsyncLLM": "async_llm", "AsyncStream": "stream", "Stream": "stream",
}  # fmt: skip


def __getattr__(name: str) -> "Any":
    from importlib import import_module

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
