"""What `ostinato bench graphs` runs over: 64 English sentences of 4 to 60 words (sentences.txt), as token ids."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

_TOKEN = re.compile(r"\w+|[^\w\s]")


def sentences() -> list[str]:
    """The sentences in the order of the file, in which short and long ones are mixed."""
    lines = (Path(__file__).parent / "sentences.txt").read_text(encoding="utf-8").splitlines()
    # The file goes from short to long, twice. With a step that shares no factor with their number every few
    # neighbours are of mixed lengths, and every sentence is there once.
    return [lines[(i * 27) % len(lines)] for i in range(len(lines))]


def made_up_ids(texts: list[str], vocab: int, around: int = 0) -> list[list[int]]:
    """Ids for a model that has no vocabulary: one for each word and mark, the same for the same word.

    around: how many to add at the ends, as an encoder's tokenizer does."""
    return [[zlib.crc32(t.encode()) % vocab for t in _TOKEN.findall(text)] + [0] * around for text in texts]
