"""Every error the engine raises on purpose. The tree:

    EngineError
    ├── CheckpointError      a file, tensor or key of a checkpoint is invalid
    │   └── UnsupportedModel     the checkpoint is valid, but needs a feature that the engine does not have
    ├── TokenizerError       tokenizer or chat template cannot be used
    ├── RequestError         a prompt or a parameter is invalid
    │   ├── CacheFull            the request can never fit into the KV cache
    │   └── QueueFull            more requests wait than max_queue allows
    ├── DownloadError        a model could not be fetched, or its checksum is wrong
    └── DeviceError          a requested backend is not available, or the device failed
        └── CaptureError         an operation could not be captured into a graph

A message names the file, tensor, key, field or operation, what was expected and what was found. This module imports
nothing, so that every other module, including `ostinato.weights`, may import it.
"""

MAX_FOUND = 80  # characters of a found value that a message repeats


def found(value: object) -> str:
    """A value as messages show it: one line, short, escaped, its type where the value alone does not tell it."""
    if isinstance(value, (list, tuple, dict, set)) and len(value) > MAX_FOUND:
        return f"{type(value).__name__} of {len(value)}"  # its repr may be huge
    try:
        text = repr(value[:MAX_FOUND] if isinstance(value, (str, bytes)) else value)
    except ValueError:  # Python refuses to print integers of more than a few thousand digits
        text = "a number of thousands of digits"
    text = " ".join(text.split())
    return text if len(text) <= MAX_FOUND else f"{text[: MAX_FOUND - 4]}...{text[-1]}"


class EngineError(Exception):
    """Base class of all errors of this package."""


class CheckpointError(EngineError):
    """A checkpoint file is damaged, incomplete or contradicts itself."""


class UnsupportedModel(CheckpointError):
    """The checkpoint needs a feature that the engine does not have."""


class TokenizerError(EngineError):
    """The tokenizer or the chat template cannot be loaded or used."""


class RequestError(EngineError):
    """A prompt or a parameter is invalid."""


class CacheFull(RequestError):
    """The request needs more pages than the whole KV cache has."""


class QueueFull(RequestError):
    """More sequences wait than max_queue allows: the same request may be accepted later."""


class DownloadError(EngineError):
    """A model could not be fetched, or its checksum is wrong."""


class DeviceError(EngineError):
    """A requested backend cannot run here, or the device reported an error."""


class CaptureError(DeviceError):
    """An operation could not be captured into a graph."""
