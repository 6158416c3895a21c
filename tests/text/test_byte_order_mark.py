"""A UTF-8 byte order mark, which some editors write, is skipped in every text file of a checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ostinato import LLM, CheckpointError
from ostinato.weights.files import parse_json

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("llama", "config.json"),
        ("llama", "generation_config.json"),
        ("llama", "tokenizer.json"),
        ("llama", "tokenizer_config.json"),
        ("llama", "chat_template.jinja"),
        ("llama-sharded", "model.safetensors.index.json"),
    ],
)
def test_a_mark_before_a_file_is_skipped(tmp_path: Path, model: str, name: str) -> None:
    directory = tmp_path / model
    shutil.copytree(FIXTURES / model, directory)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    (directory / "generation_config.json").write_text('{"eos_token_id": 0}')

    def prompt() -> list[int]:
        with LLM(directory, backend="numpy", quiet=True) as llm:
            return llm.chat_prompt([{"role": "user", "content": "The river"}])

    expected = prompt()
    (directory / name).write_bytes(b"\xef\xbb\xbf" + (directory / name).read_bytes())
    assert prompt() == expected


@pytest.mark.parametrize("raw", [b"\xef\xbb\xbf{}", b"\xff\xfe{\0}\0"], ids=["utf-8", "utf-16"])
def test_a_header_has_none(raw: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"^here: "):
        parse_json(raw, "here")
