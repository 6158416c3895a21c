"""WordPiece as in BERT: ids with special tokens, unknown words, and decoding as the backend does."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from ostinato.errors import RequestError
from ostinato.text.tokenizer import Tokenizer

CONTROL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]  # ids 0 to 3
WORDS = ["don", "'", "t", "stop", "##ping", "##s", ".", ",", "!", "?", "n't", "[", "]", "sep", "unk", "a"]


def wordpiece(cleanup: bool = True) -> tuple[Backend, Tokenizer]:
    vocab = {token: i for i, token in enumerate([*CONTROL, *WORDS])}
    backend = Backend(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    backend.decoder = decoders.WordPiece(cleanup=cleanup)
    backend.add_special_tokens(CONTROL)
    backend.enable_padding(length=9)
    backend.enable_truncation(max_length=5)
    return backend, Tokenizer(backend, "test")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        pytest.param("Stopping stops", ["stop", "##ping", "stop", "##s"], id="pieces"),
        pytest.param("", [], id="empty"),
        pytest.param("a 🙂 stop", ["a", "[UNK]", "stop"], id="unknown-word"),
        pytest.param("[SEP] [unk]", ["[", "sep", "]", "[", "unk", "]"], id="control-tokens-are-plain-text"),
        pytest.param("a " * 20, ["a"] * 20, id="neither-cut-nor-padded"),
    ],
)
def test_ids(text: str, tokens: list[str]) -> None:
    backend, t = wordpiece()
    assert t.encode(text) == [2, *map(backend.token_to_id, tokens), 3]


@pytest.mark.parametrize("cleanup", [True, False])
@pytest.mark.parametrize("text", ["don't stop, stopping!", "a . stops ?", "stop 'a", "don n't"])
def test_text_is_what_the_backend_decodes(text: str, cleanup: bool) -> None:
    backend, t = wordpiece(cleanup)
    ids = t.encode(text)
    decoder = t.incremental()
    assert t.decode(ids) == backend.decode(ids)
    assert ("".join(map(decoder.push, ids)) + decoder.flush()).strip() == backend.decode(ids)


def test_other_control_tokens_are_still_refused() -> None:
    backend = Backend(models.WordPiece({"[UNK]": 0, "[CLS]": 1}, unk_token="[UNK]"))
    backend.add_special_tokens(["[UNK]", "[CLS]"])
    backend.decoder = decoders.WordPiece()
    with pytest.raises(RequestError, match=r"'\[CLS\]' cannot be encoded other than as control token 1"):
        Tokenizer(backend, "test").encode("[CLS]")
