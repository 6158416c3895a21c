"""The input of `ostinato bench graphs`: 64 English sentences of 4 to 60 words (sentences.txt), as token ids."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

_TOKEN = re.compile(r"\w+|[^\w\s]")


def sentences() -> list[str]:
    """The sentences, short and long ones mixed."""
    lines = (Path(__file__).parent / "sentences.txt").read_text(encoding="utf-8").splitlines()
    # The file goes from short to long, twice. A stride that is coprime with the number of lines visits every sentence
    # once and mixes the lengths of neighbours.
    return [lines[(i * 27) % len(lines)] for i in range(len(lines))]


def made_up_ids(texts: list[str], vocab: int, around: int = 0) -> list[list[int]]:
    """Token ids for a model without a vocabulary: one per word and punctuation mark, equal for equal words.

    around: number of ids to add at the end of each text, for the special tokens of an encoder."""
    return [[zlib.crc32(t.encode()) % vocab for t in _TOKEN.findall(text)] + [0] * around for text in texts]
