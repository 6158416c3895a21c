"""GGUF models in one file, or split into NAME-00001-of-00003.gguf, NAME-00002-of-00003.gguf and so on.

The first part has the metadata of the model. Every part has some of the tensors and three keys: its index from 0
(split.no), the number of parts (split.count) and the number of tensors of all parts (split.tensors.count).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import CheckpointError, found
from ..keys import Keys
from .files import is_gguf
from .gguf import Gguf, read_file
from .tensor import Tensor

_PART = re.compile(r"(.+-)(\d{5})(-of-)(\d{5})(\.gguf)", re.IGNORECASE | re.ASCII)
_MOST = 99_999  # parts that five digits number


def find_file(directory: Path) -> Path | None:
    """The GGUF file of a directory, or the first part there of a split model. None if there is none, or if there are
    safetensors.

    The image encoder of a model, mmproj*.gguf, is skipped. CheckpointError names the files if they belong to several
    models."""
    try:
        names = sorted(name for name in os.listdir(directory) if not name.startswith("."))
    except OSError as e:
        raise CheckpointError(f"{directory}: cannot be listed: {e.strerror}") from e
    files = [name for name in names if name.lower().endswith(".gguf") and is_gguf(directory / name)]
    if not files or any(name.lower().endswith(".safetensors") for name in names):
        return None
    files = [name for name in files if not name.lower().startswith("mmproj")] or files
    models = {part.group(1, 4) if (part := _PART.fullmatch(name)) else name for name in files}
    if len(models) > 1:
        listed = ", ".join(files[:5]) + (f" and {len(files) - 5} more" if len(files) > 5 else "")
        raise CheckpointError(f"{directory}: expected one .gguf file, found {listed}; give the path of one of them")
    return directory / files[0]


def read_model(path: Path) -> Gguf:
    """Metadata and tensors of a model. path: its file, or any of its parts. Tensor data is not read.

    CheckpointError names a part that is missing, whose index is not that of its name, or that contradicts the first."""
    file = read_file(path)
    count = Keys(file.metadata, str(path)).integer("split.count", 1, _MOST) if "split.count" in file.metadata else 1
    if count == 1:
        return file
    paths = _paths(path, count)
    files = [file if part == path else read_file(part) for part in paths]
    metadata = files[0].metadata
    tensors: dict[str, Tensor] = {}
    for number, (part, one) in enumerate(zip(paths, files, strict=True)):
        _check_part(part, number, one, metadata)
        for name, tensor in one.tensors.items():
            if name in tensors:
                raise CheckpointError(f"{part}: tensor {name}: {tensors[name].file.name} has it as well")
            tensors[name] = tensor
    keys = Keys(metadata, str(paths[0]))
    if keys.get("split.tensors.count") != len(tensors):
        keys.wrong("split.tensors.count", f"{len(tensors)}, as the parts hold", keys.get("split.tensors.count"))
    return Gguf(metadata, tensors)


def parts(path: Path) -> list[Path]:
    """The paths of all parts of a model, in order, from that of one; [path] if its name is not of a part."""
    name = _PART.fullmatch(path.name)
    if not name or not 1 <= int(name[2]) <= int(name[4]):
        return [path]
    stem, _, of, total, suffix = name.groups()
    return [path.with_name(f"{stem}{i:05}{of}{total}{suffix}") for i in range(1, int(total) + 1)]


def _paths(path: Path, count: int) -> list[Path]:
    """The paths of all `count` parts, in order. CheckpointError if one does not exist."""
    paths = parts(path)
    if len(paths) != count:
        raise CheckpointError(
            f"{path}: split.count: {count} files hold this model; expected a name like NAME-00001-of-{count:05}.gguf, "
            f"found {found(path.name)}"
        )
    for part in paths:
        if not part.exists():
            raise CheckpointError(f"{part}: part of a model in {count} files is missing")
    return paths


def _check_part(path: Path, number: int, part: Gguf, first: dict[str, object]) -> None:
    """Check that split.no fits the file name, and that metadata repeated from the first part is equal."""
    keys = Keys(part.metadata, str(path))
    if keys.get("split.no") != number:
        keys.wrong("split.no", f"{number}, by the file's name", keys.get("split.no"))
    for key, value in part.metadata.items():
        if key not in ("split.no", "general.alignment") and (key not in first or first[key] != value):
            expected = f"{found(first[key])}, as in the first part" if key in first else "it in the first part only"
            keys.wrong(key, expected, value)
