"""Commands and Python on the pages run as they stand, with tiny models in place of the aliases.

A fence that needs more than this machine has says so after its language; see docs/contributing.md.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from doc_pages import ROOT, Fence, fences

LANGUAGES = {"console", "python", "text", "mermaid"}
NEEDS = {"console": {"", "gpu", "network", "minutes"}, "python": {"", "gpu", "excerpt"}}
MODELS = {"smollm2-135m": "llama", "minilm-l6": "bert"}  # alias -> folder of tests/fixtures
SECONDS = 120
ALL = list(fences())


def wanted(language: str, needs: str = "") -> list:
    found = [f for f in ALL if (f.language, f.needs) == (language, needs)]
    return [pytest.param(f, id=f"{f.page}:{f.line}") for f in found]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which the aliases are tiny models, and the rest is as in a checkout."""
    for alias, fixture in MODELS.items():
        (tmp_path / alias).symlink_to(ROOT / "tests" / "fixtures" / fixture)
    for name in ("tests", "examples", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS
    )


@pytest.mark.parametrize("fence", ALL, ids=lambda f: f"{f.page}:{f.line}")
def test_every_fence_says_what_it_is(fence: Fence) -> None:
    assert fence.language in LANGUAGES
    assert fence.needs in NEEDS.get(fence.language, {""})
    assert fence.language != "console" or fence.commands, "a console fence has commands, which begin with '$ '"


@pytest.mark.parametrize("fence", [*wanted("console", "gpu"), *wanted("python", "gpu")])
def test_a_reader_sees_which_commands_need_a_gpu(fence: Fence) -> None:
    """A rendered page does not show the words after a fence's language."""
    assert "GPU" in fence.text, "expected a comment such as '# needs an NVIDIA GPU'"


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize("fence", wanted("console"))
def test_commands(fence: Fence, folder: Path) -> None:
    for command in fence.commands:
        done = run(["bash", "-o", "pipefail", "-c", command], folder)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize("fence", wanted("python"))
def test_python(fence: Fence, folder: Path) -> None:
    (folder / "page.py").write_text(fence.text)
    done = run([sys.executable, "page.py"], folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("needs", ["gpu", "minutes"])
def test_commands_that_cannot_run_here_are_at_least_known(needs: str) -> None:
    """Options that `ostinato` does not know, and targets that the Makefile does not have."""
    from ostinato.cli import main as cli

    made = (ROOT / "Makefile").read_text(encoding="utf-8")
    for fence in (f for f in ALL if (f.language, f.needs) == ("console", needs)):
        for command in fence.commands:
            words = command.split("#")[0].split(">")[0].split()
            words = [word for word in words if "=" not in word or word.startswith("-")]
            if words[0] == "make":
                assert f"\n{words[1]}:" in made, command
            elif words[0] == "ostinato":
                cli.parser().parse_args(words[1:])
            else:
                assert words[0] in ("python", "pytest"), f"{fence.page}:{fence.line}: {command}"


@pytest.mark.parametrize("fence", wanted("python", "excerpt"))
def test_excerpts_are_of_the_code(fence: Fence) -> None:
    """Each top-level statement, docstrings aside, is one of the file that defines its first name."""
    sources = [*(ROOT / "engine" / "models").rglob("*.py")]
    known = {dumped(node) for source in sources for node in ast.parse(source.read_text(encoding="utf-8")).body}
    assert [ast.unparse(node) for node in ast.parse(fence.text).body if dumped(node) not in known] == []


def dumped(node: ast.stmt) -> str:
    if isinstance(node, ast.FunctionDef) and ast.get_docstring(node, clean=False) is not None:
        node.body = node.body[1:]
    return ast.dump(node)
