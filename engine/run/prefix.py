"""Keys of the prefix cache: a chain of hashes, so that the key of a page stands for all tokens up to its end.

Pages of one key hold the same bits if prefill passes wrote them: neither the chunking of a prompt nor other sequences
change a bit (Ops.exact). Decode steps sum in another order, so a page with a decoded token never gets a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from ..sizes import PAGE

_BYTES = 16  # of a key


def root(*parts: str) -> bytes:
    """The root of every chain: all that the bits of a page depend on besides its tokens."""
    return _hash("\0".join(parts).encode())


def page_keys(beginning: bytes, salt: str, ids: Sequence[int]) -> list[bytes]:
    """The keys of all full pages of a prompt. Prompts of different salts never share a key."""
    key = _hash(beginning + salt.encode("utf-8", "surrogatepass"))
    tokens = np.asarray(ids, np.int32)
    keys = []
    for first in range(0, len(tokens) - PAGE + 1, PAGE):
        keys.append(key := _hash(key + tokens[first : first + PAGE].tobytes()))
    return keys


def _hash(data: bytes) -> bytes:
    return blake2b(data, digest_size=_BYTES).digest()
