"""All one-token changes that `make mutants RANDOM=n` can make in kernels/, and the kernels that a change affects.

A change replaces an operator, bound, constant or barrier. Comments, preprocessor lines, static_asserts and code that is
only for speed stay unchanged. A change affects the kernels that use the changed declaration, directly or indirectly.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Not compiled for the CPU: the emulator replaces these instructions.
LEFT_OUT = ("ptx.cuh",)

# Changes here cannot be detected by a test on a CPU: text, compile-time checks, code that is only for speed.
_BLANK = re.compile(
    r"//[^\n]*|/\*.*?\*/|^[ \t]*#(?:[^\n]*\\\n)*[^\n]*|\"[^\"\n]*\"|\bstatic_assert\([^;]*;"
    r"|^[ \t]*template\s*<[^\n]*|\b__launch_bounds__\((?:[^()]|\([^()]*\))*\)|\bgrid_launch\(\);"
    r"|^[^\n]*\bprefetch_l2\([^\n]*",
    re.M | re.S,
)

_OPERATORS = {
    "+": "-", "-": "+", "*": "+", "/": "*", "%": "/", "&&": "||", "||": "&&", "&": "|", "|": "&", "^": "|",
    "<<": ">>", ">>": "<<", "+=": "-=", "-=": "+=", "*=": "/=", "/=": "*=", "|=": "&=", "==": "!=", "!=": "==",
    "min": "max", "max": "min", "fmaxf": "fminf",
}  # fmt: skip
_BOUNDS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
_CALLS = r"__syncthreads|__syncwarp|grid_wait|cluster_sync|__threadfence|cp_async_commit"
_SIGN = r"(?<= )(?:{})(?= )"


def _signs(signs: dict[str, str]) -> str:
    """A pattern of binary operators, which clang-format puts between blanks; longest first."""
    return _SIGN.format("|".join(map(re.escape, sorted((s for s in signs if not s.isalpha()), key=len, reverse=True))))


_KINDS = {
    "operator": re.compile(rf"{_signs(_OPERATORS)}|\b(?:min|max|fmaxf)(?=\()"),
    "bound": re.compile(_signs(_BOUNDS)),
    "constant": re.compile(r"(?<![\w.])(?:0x[0-9a-fA-F]+u?|\d+\.(?:\d+(?:e[-+]?\d+)?)?f|\d+u?)(?![\w.])"),
    "barrier": re.compile(rf"\b(?:(?:{_CALLS})\(\)|cp_async_wait<[^<>]*>\(\)|barrier_(?:wait|arrive)\([^()]*\))"),
}


@dataclass(frozen=True)
class Change:
    """Characters [start, end) of kernels/<file>, on `line`, become `after`."""

    file: str
    kind: str
    start: int
    end: int
    line: int
    before: str
    after: str
    text: str  # the line

    def apply(self, source: str) -> str:
        return source[: self.start] + self.after + source[self.end :]


def blanked(source: str) -> str:
    """The source with blanks in place of code that must not change; every other character keeps its position."""
    return _BLANK.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), source)


def changes(file: str, source: str) -> Iterator[Change]:
    """All changes of a file: two or three per constant, one per other token."""
    text, lines = blanked(source), source.splitlines()
    for kind, pattern in _KINDS.items():
        for found in pattern.finditer(text):
            line = source.count("\n", 0, found.start()) + 1
            whole = lines[line - 1].strip()
            for after in _replacements(kind, found.group()):
                yield Change(file, kind, found.start(), found.end(), line, found.group(), after, whole)


def _replacements(kind: str, token: str) -> tuple[str, ...]:
    if kind == "barrier":
        return ("(void)0",)
    if kind != "constant":
        return (({**_OPERATORS, **_BOUNDS})[token],)
    if token.startswith("0x"):
        return (f"({token} >> 1)",)
    if token.endswith("f"):
        return ("1.f",) if float(token[:-1]) == 0 else ("0.f", f"(1.125f * {token})")
    number, unsigned = int(token.rstrip("u")), "u" * token.endswith("u")
    return tuple(f"{n}{unsigned}" for n in (number + 1, number - 1) if n >= 0)


def draw(kernels: Path, seed: int) -> Iterator[Change]:
    """Every change once, in an order that depends on the seed; the kinds alternate."""
    files = sorted(p for p in kernels.iterdir() if p.suffix in (".cu", ".cuh") and p.name not in LEFT_OUT)
    every = [c for path in files for c in changes(path.name, path.read_text(encoding="utf-8"))]
    rng = random.Random(seed)
    rng.shuffle(every)
    piles = {kind: [c for c in every if c.kind == kind] for kind in _KINDS}
    while kinds := [kind for kind in _KINDS if piles[kind]]:
        for kind in kinds:
            yield piles[kind].pop()


# -- which kernels a change reaches ---------------------------------------------------------------------------------

_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)
_DECORATION = re.compile(r"template\s*<(?:[^<>]|<[^<>]*>)*>|__launch_bounds__\((?:[^()]|\([^()]*\))*\)")


@dataclass(frozen=True)
class Declaration:
    """A top-level declaration: its name, and every word in it."""

    start: int
    end: int
    names: frozenset[str]
    words: frozenset[str]
    kernel: str  # name of a __global__ function; "" for others


@cache
def declarations(source: str) -> list[Declaration]:
    """The top-level declarations of a file, in order."""
    text = re.sub(r"//[^\n]*", lambda m: " " * len(m.group()), source)
    found, start, depth, at = [], 0, 0, 0
    while at < len(text):
        if depth == 0 and text[at] == "#":
            at = re.compile(r"(?:[^\n]*\\\n)*[^\n]*").match(text, at).end()  # type: ignore[union-attr]
            found.append(_declaration(text, start, at))
            start = at
            continue
        depth += {"{": 1, "}": -1, "(": 1, ")": -1}.get(text[at], 0)
        at += 1
        if depth == 0 and text[at - 1] in ";}" and not text.startswith(";", at):
            found.append(_declaration(text, start, at))
            start = at
    return found


def _declaration(text: str, start: int, end: int) -> Declaration:
    chunk = text[start:end]
    plain = _DECORATION.sub(" ", chunk)
    names = re.findall(r"#\s*define\s+(\w+)", plain)
    named = re.match(r"\s*(struct|enum|using)\s+(\w+)", plain)
    function = re.search(r"(\w+)\s*(?:<\w+>\s*)?\(", plain)
    if not names and named:
        names = [named.group(2), *(re.findall(r"[{,]\s*([A-Z_]+)\b", plain) if named.group(1) == "enum" else [])]
    elif not names and function and "=" not in plain[: function.start()]:
        names = [function.group(1)]
    elif not names:
        names = re.findall(r"(\w+)\s*(?:<\w+>\s*)?=", plain)
    kernel = names[0] if names and re.match(r"\s*__global__", plain) else ""
    return Declaration(start, end, frozenset(names), frozenset(re.findall(r"\w+", chunk)), kernel)


def reached(kernels: Path, change: Change) -> set[tuple[str, str]]:
    """(file, kernel) of every kernel that the change may affect."""
    return {(path.name, name) for path in sorted(kernels.glob("*.cu")) for name in _reached_in(kernels, path, change)}


def _reached_in(kernels: Path, path: Path, change: Change) -> set[str]:
    files, waiting = set(), [path.name]
    while waiting:
        if (name := waiting.pop()) not in files and (kernels / name).exists():
            files.add(name)
            waiting += _INCLUDE.findall((kernels / name).read_text(encoding="utf-8"))
    if change.file not in files:
        return set()
    found = {name: declarations((kernels / name).read_text(encoding="utf-8")) for name in files}
    everything = [d for own in found.values() for d in own]
    names = {n for d in found[change.file] if d.start <= change.start < d.end for n in d.names}
    reach = {d for d in everything if d.names & names} if names else set(everything)
    while more := {d for d in everything if d not in reach and any(d.words & r.names for r in reach)}:
        reach |= more
    return {d.kernel for d in reach if d.kernel}
