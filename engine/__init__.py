"""ostinato: a small-batch transformer engine of hand-written CUDA kernels replayed as CUDA graphs."""

from .async_llm import AsyncLLM
from .config import EngineConfig, ModelConfig, SamplingParams
from .errors import (
    CacheFull,
    CaptureError,
    CheckpointError,
    DeviceError,
    DownloadError,
    EngineError,
    RequestError,
    TokenizerError,
    UnsupportedModel,
)
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
    "RequestError",
    "RequestOutput",
    "SamplingParams",
    "Stream",
    "StreamChunk",
    "TokenizerError",
    "UnsupportedModel",
    "__version__",
    "generate",
]
