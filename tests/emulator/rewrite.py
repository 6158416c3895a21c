"""Translates CUDA C++ to C++: the three kinds of declarations that no macro can translate.

Lines keep their numbers, so that compiler messages name the right line.
"""

from __future__ import annotations

import re

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_SHARED = re.compile(
    r"(?P<before>(?:alignas|__align__)\s*\([^()]*\)\s*)?(?P<extern>extern\s+)?__shared__\s+(?P<declaration>[^;{}]+);",
    re.S,
)
_ALIGNED = re.compile(r"(?:alignas|__align__)\s*\(([^()]*)\)")
_DECLARATOR = re.compile(r"(?P<type>.*?[\s>*&])(?P<name>\w+)\s*(?P<sizes>(?:\[[^\]]*\]\s*)*)$", re.S)
_KERNEL = re.compile(r"__global__\b")
_BOUNDS = re.compile(r"__launch_bounds__\s*\(")
_NAME = re.compile(r"(\w+)\s*$")


def without_comments(source: str) -> str:
    """The source without comments, but with their line breaks."""
    return _COMMENT.sub(lambda m: "\n" * m.group().count("\n") or " ", source)


def closing(source: str, opening: int) -> int:
    """Index of the parenthesis that closes the one at `opening`."""
    depth = 0
    for i in range(opening, len(source)):
        depth += {"(": 1, ")": -1}.get(source[i], 0)
        if not depth:
            return i
    raise ValueError(f"no closing parenthesis after {source[opening : opening + 40]!r}")


def split_commas(text: str) -> list[str]:
    """Split `text` at commas outside of all brackets, including angle brackets."""
    parts, depth = [""], 0
    for c in text:
        depth += (c in "([{<") - (c in ")]}>")
        if c == "," and not depth:
            parts.append("")
        else:
            parts[-1] += c
    return [p.strip() for p in parts if p.strip()]


def rewrite(source: str, file: str) -> str:
    """The C++ version of a kernel file."""
    return f'#line 1 "kernels/{file}"\n' + _bounds(_shared(without_comments(source), file))


def kernel_parameters(source: str) -> dict[str, list[str]]:
    """Name of each __global__ function -> its parameter names."""
    source = without_comments(source)
    found = {}
    for match in _KERNEL.finditer(source):
        name, opening = _kernel_head(source, match.end())
        parameters = split_commas(source[opening + 1 : closing(source, opening)])
        found[name] = [m.group(1) if (m := _NAME.search(p)) else "" for p in parameters]
    return found


def _kernel_head(source: str, start: int) -> tuple[str, int]:
    """(name of the kernel whose declaration continues at `start`, index of its parameter list)."""
    opening = source.index("(", start)
    while True:
        name = _NAME.search(source, start, opening)
        if name and name.group(1) not in ("__launch_bounds__", "alignas", "__align__"):
            return name.group(1), opening
        opening = source.index("(", closing(source, opening))


def _bounds(source: str) -> str:
    """Replace __launch_bounds__(n, ...) by a last parameter of type emu::LaunchBound<n>."""
    out, done = [], 0
    for match in _KERNEL.finditer(source):
        _, opening = _kernel_head(source, match.end())
        head, threads = source[match.end() : opening], "1024"
        if bounds := _BOUNDS.search(head):
            end = closing(head, bounds.end() - 1)
            threads = split_commas(head[bounds.end() : end])[0]
            head = head[: bounds.start()] + "\n" * head[bounds.start() : end].count("\n") + head[end + 1 :]
        end = closing(source, opening)
        comma = "," if source[opening + 1 : end].strip() else ""
        out += [source[done : match.end()], head, source[opening:end], f"{comma} emu::LaunchBound<({threads})>"]
        done = end
    return "".join([*out, source[done:]])


def _name_and_sizes(declarator: str) -> tuple[str, str]:
    name, bracket, sizes = declarator.partition("[")
    return name.strip(), bracket + sizes.strip()


def _shared(source: str, file: str) -> str:
    def replace(match: re.Match[str]) -> str:
        where = f"kernels/{file}:{source.count(chr(10), 0, match.start()) + 1}"
        if source.count("{", 0, match.start()) == source.count("}", 0, match.start()):
            raise ValueError(f"{where}: __shared__ outside a function")
        declaration, alignment = match["declaration"], "0"
        for aligned in _ALIGNED.findall((match["before"] or "") + declaration):
            alignment = aligned
        first, *others = split_commas(_ALIGNED.sub("", declaration))
        if not (parts := _DECLARATOR.match(first)):
            raise ValueError(f"{where}: expected __shared__ TYPE NAME[SIZE]..., found {declaration.strip()!r}")
        type_ = " ".join(parts["type"].split())
        if match["extern"]:
            new = f"{type_}* const {parts['name']} = emu::dynamic_shared<{type_}, {alignment}>();"
        else:
            variables = [(parts["name"], parts["sizes"].strip()), *map(_name_and_sizes, others)]
            new = " ".join(
                f"auto& {name} = emu::static_shared<{type_}{sizes}, {alignment}>([] {{}});" for name, sizes in variables
            )
        return new + "\n" * match.group().count("\n")

    return _SHARED.sub(replace, source)
