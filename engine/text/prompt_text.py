"""Token ids of the text of a prompt: bounded before it is encoded, and control tokens only where they are asked for."""

from __future__ import annotations

import logging

from ..errors import RequestError
from .tokenizer import Tokenizer

_log = logging.getLogger("ostinato")
_told = False  # once a process


def encode(text: str, t: Tokenizer, max_len: int, parse_special: bool = False, tell: bool = True) -> list[int]:
    """Ids of a prompt. RequestError if it cannot be encoded, or has max_len tokens or more by its length alone.

    parse_special: control tokens that the text spells count as such; else they are characters like any other, which is
    logged once a process if `tell`."""
    expect_room(f"prompt: expected fewer than {max_len} tokens (max_len)", text, t, max_len - 1)
    if tell and not parse_special:
        _tell(text, t)
    return t.encode(text, special=parse_special)


def expect_room(expected: str, text: str, t: Tokenizer, most: int) -> None:
    """RequestError, beginning with `expected`, if a text has more than `most` tokens by its length alone."""
    if (least := t.at_least(text, most)) > most:
        raise RequestError(f"{expected}, found at least {least} in {len(text)} characters")


def _tell(text: str, t: Tokenizer) -> None:
    global _told
    if not _told and (token := t.control_in(text)) is not None:
        _told = True
        _log.warning(
            "prompt: %r is taken as plain characters, not as the control token; parse_special (--parse-special) "
            "changes that, and chat() writes control tokens itself", token
        )  # fmt: skip
