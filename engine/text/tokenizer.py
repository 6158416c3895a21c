"""The tokenizer of a checkpoint: text to token ids and back.

It comes from tokenizer.json and tokenizer_config.json, or from the metadata of a GGUF file. The `tokenizers` package
does the encoding. A user's text never becomes a control token: "<|im_end|>" stays ten characters. Control tokens are
read only with `special=True`, which is meant for the output of chat templates.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel, WordPiece
from tokenizers.pre_tokenizers import Metaspace, Sequence

from ..checks import found, refuse, unicode
from ..errors import CheckpointError, EngineError, RequestError, TokenizerError
from ..process import forks
from ..weights import files
from . import gguf_vocab
from .detokenizer import ALPHABET, Decoder, Spelling
from .token_floor import TokenFloor

MAX_BYTES = 256 * 2**20  # of a tokenizer.json; the largest in use have about 40 MiB


class Tokenizer:
    """One vocabulary. Any number of threads may use it. A Decoder belongs to one sequence."""

    def __init__(
        self, backend: Backend, source: str, names: dict[str, str] | None = None, ends: Iterable[int | None] = ()
    ):
        """source: the name in messages. names: texts of tokens by role ("bos_token", "eos_token", ...), which chat
        templates, bos_id and eos_ids use. ends: ids of end tokens in addition to the eos_token."""
        self.source = source
        self.names = names or {}
        self._backend = backend
        self._splitter: Any = None  # made at the first chat
        self._pre_tokenizers = _pre_tokenizers(backend)
        self._lock = forks.Lock()  # encode_special_tokens is state of the backend
        backend.no_truncation()
        backend.no_padding()
        state = backend.decoder.__getstate__() if backend.decoder is not None else b"null"  # JSON
        self._spelling = Spelling(json.loads(state), source)
        added = backend.get_added_tokens_decoder()
        self._pieces = {i: token.content.encode() for i, token in added.items()}  # id -> bytes, a cache
        self.control = {i: token.content for i, token in added.items() if token.special}  # control tokens by id
        # WordPiece writes this token for an unknown word; other vocabularies spell unknown characters by bytes
        unknown = backend.model.unk_token if isinstance(backend.model, WordPiece) else None
        # ids that a user's text must not give
        self._meant = {i for i, content in self.control.items() if content != unknown}
        vocab = backend.get_vocab(with_added_tokens=True)
        if not vocab:
            raise TokenizerError(f"{source}: expected a vocabulary, found no token")
        self._ids = frozenset(vocab.values())
        byte_level = self._spelling.byte_level
        # bytes that have a token
        self._kept = bytes(b for char, b in ALPHABET.items() if not byte_level or char in vocab)
        self._floor = TokenFloor(backend, self._bytes_of)
        texts = sorted((self.control[i] for i in self._meant if self.control[i]), key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, texts)) or r"(?!)")
        self.vocab_size = max(self._ids) + 1
        self.bos_id = self._id_of("bos_token")
        # end tokens, by the files of the tokenizer
        self.eos_ids = tuple(dict.fromkeys(i for i in (self._id_of("eos_token"), *ends) if i is not None))

    @staticmethod
    def from_checkpoint(checkpoint: Any) -> Tokenizer:
        """The tokenizer of an open checkpoint, a directory or a GGUF file. TokenizerError names file and key."""
        if checkpoint.directory is not None:
            return _from_directory(Path(checkpoint.directory))
        values, source = checkpoint.metadata or {}, str(checkpoint.source)
        backend = _guarded(source, lambda: gguf_vocab.build(values, source))
        meta, tokens = gguf_vocab.reader(values, source), values["tokenizer.ggml.tokens"]
        roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
        ids = {role: meta.token_id(f"{name}_token_id", len(tokens)) for role, name in roles.items()}
        # end of turn, end of message (a tool call)
        ends = [meta.token_id(f"{name}_token_id", len(tokens)) for name in ("eot", "eom")]
        return Tokenizer(backend, source, {role: tokens[i] for role, i in ids.items() if i is not None}, ends)

    def encode(self, text: str, special: bool = False, bos: bool = True) -> list[int]:
        """Token ids of a text.

        special: read control tokens in the text; otherwise they are plain characters. bos: add the tokens that the
        tokenizer puts around a prompt, usually a begin token. RequestError if the text cannot be encoded."""
        encoding = self._encode(text, special)
        if not bos:
            return encoding.ids
        ids = self._backend.post_process(encoding, None, True).ids
        twice = special and ids[:1] == encoding.ids[:1] == ids[1:2] and ids[0] in self.control
        return ids[1:] if twice else ids  # the text already begins with the begin token

    def at_least(self, text: str, limit: int) -> int:
        """A lower bound on the tokens of a text, which costs little; 0 if it is short enough to be encoded."""
        return self._floor.of(text, limit)

    def control_in(self, text: str) -> str | None:
        """The first control token that a text spells; None if there is none."""
        match = self._spelled.search(text) if isinstance(text, str) else None
        return match and match[0]

    def encode_marked(self, text: str, restore: Callable[[str], str]) -> list[int]:
        """Token ids of a text with control tokens. `restore` is applied to each part between control tokens.

        A chat template's control tokens are read as such, those in a message are not. So placeholders replace the
        latter, and `restore` brings them back after the former were found. No begin token is added."""
        ids: list[int] = []
        start = 0
        for i, begin, end in self._control_tokens(text):
            ids += [*self._encode(restore(text[start:begin]), special=False, begins=not ids).ids, i]
            start = end
        return ids + self._encode(restore(text[start:]), special=False, begins=not ids).ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of tokens that begin a text. Incomplete UTF-8 becomes U+FFFD."""
        decoder = Decoder(self._bytes_of, self._spelling.strip, self.control if skip_special else ())
        return "".join([decoder.push(i) for i in ids]) + decoder.flush()

    def incremental(self, skip_special: bool = True) -> Decoder:
        """A Decoder for tokens that continue a prompt. It keeps a space at their beginning."""
        return Decoder(self._bytes_of, 0, self.control if skip_special else ())

    def unknown(self, rows: int) -> tuple[int, ...]:
        """Ids below `rows`, the rows of the embedding table, without a token. They must never be sampled.

        Embedding tables are padded to round sizes, so there are usually some. TokenizerError if a token has no row."""
        if self.vocab_size > rows:
            raise TokenizerError(
                f"{self.source}: expected ids below the {rows} rows of the embedding, found {self.vocab_size - 1}"
            )
        return tuple(i for i in range(rows) if i not in self._ids)

    def _encode(self, text: Any, special: bool, begins: bool = True) -> Any:
        """begins: the text is the beginning of a prompt; otherwise it follows a control token."""
        if not isinstance(text, str):
            refuse("prompt", "a text", text)
        lost = unicode("prompt", text).encode().translate(None, self._kept)
        if lost:  # the backend would drop it silently
            raise RequestError(f"prompt: expected bytes that the vocabulary has, found 0x{lost[0]:02x}")
        with self._lock:
            self._backend.encode_special_tokens = not special
            if self._pre_tokenizers is not None:
                self._backend.pre_tokenizer = self._pre_tokenizers[begins]
            encoding = _guarded(self.source, lambda: self._backend.encode(text, add_special_tokens=False))
        if not special and not self._meant.isdisjoint(encoding.ids):  # the vocabulary itself produced a control token
            i = next(i for i in encoding.ids if i in self._meant)
            raise RequestError(f"prompt: {self.control[i]!r} cannot be encoded other than as control token {i}")
        return encoding

    def _control_tokens(self, text: str) -> Iterator[tuple[int, int, int]]:
        """(id, begin, end) of each control token in a text. The text between them is not encoded."""
        if self._splitter is None:
            self._splitter = _splitter(self._backend)
        encoding = _guarded(self.source, lambda: self._splitter.encode(text, add_special_tokens=False))
        for token, (begin, end) in zip(encoding.tokens, encoding.offsets, strict=True):
            i = self._backend.token_to_id(token)
            if i in self.control:
                yield i, begin, end

    def _bytes_of(self, i: int) -> bytes:
        """The bytes of a token id, computed once. RequestError for an id without a token."""
        piece = self._pieces.get(i)
        if piece is None:
            token = self._backend.id_to_token(i) if i in self._ids else None
            if token is None:
                raise RequestError(f"token id: expected one of the tokenizer's {len(self._ids)}, found {found(i)}")
            piece = self._pieces[i] = self._spelling.bytes_of(token)
        return piece

    def _id_of(self, role: str) -> int | None:
        """Id of the token with a role; None without such a role. TokenizerError if the vocabulary lacks the token."""
        if role not in self.names:
            return None
        i = self._backend.token_to_id(self.names[role])
        if i is None:
            raise TokenizerError(f"{self.source}: {role}: expected a token, found {found(self.names[role])}")
        return i


def _pre_tokenizers(backend: Backend) -> tuple[Any, Any] | None:
    """(pre-tokenizer for text after a control token, pre-tokenizer for the beginning); None if they are the same.

    A Metaspace with the scheme "first" adds a space at the beginning of a prompt only."""
    first: Any = backend.pre_tokenizer
    later = copy.deepcopy(first)
    steps = later if isinstance(later, Sequence) else [later]
    spaces = [step for step in steps if isinstance(step, Metaspace) and step.prepend_scheme == "first"]
    for step in spaces:
        step.prepend_scheme = "never"
    return (later, first) if spaces else None


def _splitter(backend: Backend) -> Backend:
    """A tokenizer that finds the same added tokens and gives one unknown token for all text between two of them."""
    splitter = Backend(WordLevel({"": 0}, unk_token=""))
    splitter.normalizer = backend.normalizer  # type: ignore[assignment]
    added = backend.get_added_tokens_decoder()
    splitter.add_tokens([added[i] for i in sorted(added)])
    return splitter


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} if there is no file. TokenizerError if it holds anything else."""
    if not files.is_listed(path):
        return {}
    try:
        return files.read_json(path)
    except CheckpointError as e:
        raise TokenizerError(str(e)) from e


def read_text(path: Path) -> str:
    """The text of a file, without a byte order mark. TokenizerError if too large, not UTF-8, or a Git LFS pointer."""
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise TokenizerError(f"{path}: expected at most {MAX_BYTES} bytes, found {size}")
        text = path.read_text(encoding="utf-8").removeprefix("\ufeff")
    except (OSError, UnicodeDecodeError) as e:
        raise TokenizerError(f"{path}: cannot be read: {e}") from e
    if files.is_pointer(text[:64].encode()):
        raise TokenizerError(f"{path}: {files.POINTER}")
    return text


def _from_directory(directory: Path) -> Tokenizer:
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise TokenizerError(f"{path}: expected a file, found none (tokenizer.model alone cannot be read)")
    text = read_text(path)
    backend = _guarded(str(path), lambda: Backend.from_str(text))
    config_path = directory / "tokenizer_config.json"
    config = read_json(config_path)
    _same_added_tokens(backend, config, config_path)
    return Tokenizer(backend, str(path), _token_names(config, config_path))


def _token_names(config: dict[str, Any], path: Path) -> dict[str, str]:
    """bos_token, eos_token, ... of a tokenizer_config.json. Each is a string, or an object with a string `content`."""
    names = {}
    for role in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = config.get(role)
        value = value.get("content") if isinstance(value, dict) else value
        if value is not None and not isinstance(value, str):
            raise TokenizerError(f"{path}: {role}: expected a string, found {found(value)}")
        if value is not None:
            names[role] = value
    return names


def _same_added_tokens(backend: Backend, config: dict[str, Any], path: Path) -> None:
    """Refuse a token that only tokenizer_config.json has, as it would be split into characters."""
    added = config.get("added_tokens_decoder") or {}
    for key, value in added.items() if isinstance(added, dict) else ():
        content = value.get("content") if isinstance(value, dict) else None
        if not isinstance(content, str) or str(backend.token_to_id(content)) != key:
            raise TokenizerError(
                f"{path}: added_tokens_decoder: {key}: expected a token of tokenizer.json, found {found(content)}"
            )


def _guarded(source: str, action: Any) -> Any:
    """Call the backend. Its errors, also panics, which derive from BaseException, become TokenizerError."""
    try:
        return action()
    except (EngineError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as e:
        raise TokenizerError(f"{source}: {' '.join(str(e).split())[:200]}") from e
