"""`pyright --verifytypes` for what users import: every public symbol has a known type that no type checker must guess.

python tests/public_types.py PYRIGHT PYTHON      in a folder that has ostinato/ as it is installed; see the Makefile

Pyright counts every module of the package. Public are the names of ostinato.__all__ and the members of their classes.
An attribute of an engine's internals whose type is inferred, not written down, makes what returns such an object
"ambiguous"; that alone is no problem of the public symbol.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODULES = ("async_llm", "config", "errors", "llm", "outputs", "stream")  # that define the names of ostinato.__all__


def public(name: str) -> bool:
    """Whether a symbol, "ostinato.llm.LLM.generate", is one that users meet."""
    parts = name.split(".")[1:]
    return len(parts) == 1 or parts[0] in MODULES


def problems(report: dict[str, Any]) -> Iterator[str]:
    """A line for every public symbol whose type is unknown or not written down. report: of pyright --outputjson."""
    completeness = report["typeCompleteness"]
    symbols = completeness["symbols"]
    if not completeness["pyTypedPath"] or not symbols:
        yield "ostinato: expected a package with py.typed, found none"
    for symbol in symbols:
        said = [" ".join(d["message"].split()) for d in symbol["diagnostics"] if d["severity"] == "error"]
        unknown = not symbol["isTypeKnown"] and not symbol["isTypeAmbiguous"]
        if public(symbol["name"]) and (unknown or any("missing" in text for text in said)):
            yield f"{symbol['name']}: {'; '.join(said) or 'its members are not known'}"


def main(pyright: str, python: str) -> int:
    command = [pyright, "--pythonpath", python, "--verifytypes", "ostinato", "--ignoreexternal", "--outputjson"]
    env = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        print(f"pyright --verifytypes: expected JSON, found {done.stdout[:500]}{done.stderr[:500]}")
        return 1
    found = list(problems(report))
    print("\n".join(found) or "every public symbol has a known type")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
