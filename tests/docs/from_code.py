"""The tables that the code itself gives: options, fields, families, formats."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import textwrap
import tokenize
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any

import numpy as np
from measured import head, line

from ostinato.cli import main as cli
from ostinato.config import EngineConfig, SamplingParams, Scheduling
from ostinato.models.families import FAMILIES
from ostinato.outputs import CompletionOutput, RequestOutput, StreamChunk
from ostinato.text import gguf_vocab
from ostinato.text.pre_tokenizers import PRE
from ostinato.weights.blocks import BLOCKS, Blocks
from ostinato.weights.kinds import GGUF_KINDS, PLAIN
from ostinato.weights.methods import METHODS

CLASSES = (EngineConfig, SamplingParams, Scheduling, RequestOutput, CompletionOutput, StreamChunk)


def commands(p: argparse.ArgumentParser, *words: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command that has none below it, "bench decode", and its parser."""
    below = [a.choices for a in p._actions if isinstance(a, argparse._SubParsersAction)]
    if not below:
        yield " ".join(words), p
    for name, inner in below[0].items() if below else ():
        yield from commands(inner, *words, name)


def options(name: str, p: argparse.ArgumentParser) -> Iterator[str]:
    """Arguments and options of a command. The same text for every version of Python, unlike --help."""
    yield f"{p.description}"
    yield ""
    yield from head(f"`ostinato {name}`", "")
    for a in p._actions:
        if not isinstance(a, (argparse._HelpAction, argparse._SubParsersAction)):
            yield line(f"`{_spelled(a)}`", _cell(a.help or ""))


def _spelled(a: argparse.Action) -> str:
    values = "\\|".join(map(str, a.choices)) if a.choices else str(a.metavar or a.dest.upper())
    name = ", ".join(a.option_strings) or str(a.metavar)
    return f"{name} {values}" if a.option_strings and a.nargs != 0 else name


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def comments(cls: type) -> dict[str, str]:
    """Field -> the comment on its line in the source of a dataclass."""
    source = textwrap.dedent(inspect.getsource(cls))
    said = {
        t.start[0]: t.string[2:]
        for t in tokenize.generate_tokens(StringIO(source).readline)
        if t.type == tokenize.COMMENT
    }
    body = next(n for n in ast.parse(source).body if isinstance(n, ast.ClassDef)).body
    fields = [n for n in body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    return {n.target.id: said.get(n.end_lineno or n.lineno, "") for n in fields if isinstance(n.target, ast.Name)}


def fields(cls: type) -> Iterator[str]:
    """Name, type, default and meaning of each field of a dataclass."""
    said = comments(cls)
    yield from head("field", "type", "default", "")
    for f in dataclasses.fields(cls):
        kind = " ".join(str(f.type).split()).replace("|", "\\|")
        default = "" if f.default is dataclasses.MISSING else f"`{f.default!r}`"
        yield line(f"`{f.name}`", f"`{kind}`", default, _cell(said[f.name] or f.metadata.get("help", "")))


def families() -> Iterator[str]:
    """Which families load, by the names in their files."""
    yield from head("family (`model_type`)", "classes (`architectures`)", "GGUF (`general.architecture`)")
    for family in FAMILIES.values():
        classes = ", ".join(f"`{name}`" for name in family.architectures)
        yield line(f"`{family.name}`", classes, f"`{family.gguf.arch}`" if family.gguf else "–")


def gguf_types() -> Iterator[str]:
    """Which tensor types of a GGUF file are read."""
    yield from head("type", "bits a number", "codes", "numbers that share a scale", "minimum")
    for kind, (_, numbers, size) in _read_types():
        if kind not in BLOCKS:
            yield line(f"`{kind}`", 8 * size // numbers, "–", "–", "–")
            continue
        form = Blocks("", kind, (0, numbers), np.empty((0, size), np.uint8)).planes(0, 0)
        assert form is not None
        minimum = "–" if form.mins is None else "yes"
        yield line(f"`{kind}`", f"{8 * size / numbers:g}", f"`{form.code}`", form.group, minimum)
    refused = [kind for kind, _, _ in GGUF_KINDS.values() if kind not in PLAIN and kind not in BLOCKS]
    yield ""
    yield f"Refused, be it one tensor of a file: {', '.join(f'`{kind}`' for kind in refused)}."


def _read_types() -> Iterator[tuple[str, tuple[str, int, int]]]:
    yield from ((of[0], of) for of in GGUF_KINDS.values() if of[0] in PLAIN or of[0] in BLOCKS)


def methods() -> Iterator[str]:
    """Which quantised safetensors are read."""
    yield from head("`quant_method`", "read", "refused")
    for name, method in METHODS.items():
        yield line(f"`{name}`", method.about, method.refused)


def pre_tokenizers() -> Iterator[str]:
    """Which values of tokenizer.ggml.model and tokenizer.ggml.pre are known."""
    kinds = ", ".join(f"`{name}` ({kind})" for name, (kind, _) in gguf_vocab.MODELS.items())
    yield f"- `tokenizer.ggml.model`: {kinds}. All others are refused."
    yield f"- `tokenizer.ggml.pre` of byte-level BPE: {', '.join(f'`{name}`' for name in PRE)}. All others are refused."


def blocks() -> Iterator[tuple[str, Callable[[], Iterator[str]]]]:
    """Name and maker of every block of this module."""
    kinds = {"families": families, "gguf-types": gguf_types, "methods": methods, "pre-tokenizers": pre_tokenizers}
    yield from kinds.items()
    for name, p in commands(cli.parser()):
        yield f"options {name}", lambda name=name, p=p: options(name, p)
    for cls in CLASSES:
        yield f"fields {cls.__name__}", lambda cls=cls: fields(cls)


def layer_source() -> Any:
    """The source of the function that README shows, without its docstring."""
    from ostinato.models import decoder

    lines, _ = inspect.getsourcelines(decoder.layer)
    return "".join(text for text in lines if not text.strip().startswith('"""'))


def layer() -> Iterator[str]:
    """The layer of a decoder, as it runs."""
    yield "```python excerpt"
    yield layer_source().rstrip("\n")
    yield "```"
