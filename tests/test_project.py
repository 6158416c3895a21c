"""Rules of the repository that no tool checks: imports between folders, lengths of functions, contents of a wheel."""

from __future__ import annotations

import ast
import configparser
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import ostinato

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("engine", "kernels", "weights", "tests", "examples")
CUPY = {"engine/ops/cuda.py", "engine/ops/cublas.py", "engine/ops/gpu.py", "engine/graph/capture.py"}
CUPY |= {
    "engine/tools/limits/lab.py"
}  # asks CUDA what graphs can hold, in a process of its own; the engine never calls it
ALLOWED = {
    "cupy": CUPY | {"engine/graph/nvtx.py"},  # ranges for profilers, which CuPy carries
    # graphs read and changed by the driver; what is there; a compiler and linker for what CuPy cannot link
    "cuda": CUPY | {"engine/graph/cuda_graph.py", "engine/tools/doctor.py", "engine/tools/limits/linking.py"},
    "cupyx": CUPY,
    "cupy_backends": CUPY,
}

# Import order: a file imports only from its own line and from lines above it. A folder is one name.
LAYERS = [
    ["errors", "sizes"],
    ["checks", "keys", "report", "process"],
    ["config", "outputs"],
    ["models"],
    ["weights"],
    ["text", "ops"],
    ["graph"],
    ["run"],
    ["stream", "llm", "async_llm"],
    [""],  # engine/__init__.py, the public names
    ["tools"],
    ["cli"],
    ["__main__"],
]
LEVEL = {name: i for i, names in enumerate(LAYERS) for name in names}


def sources(*folders: str, suffixes: tuple[str, ...] = (".py",)) -> list[Path]:
    return sorted(p for f in folders for p in (ROOT / f).rglob("*") if p.suffix in suffixes)


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[tuple[str, ast.stmt]]:
    """(what, statement): dotted names; relative ones as paths from the root, "engine.ops.base"."""
    package = list(path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) - node.level + 1] if node.level else []
            if node.level > len(package):  # from weights/ the parent is the package ostinato, which is engine/
                up = ["engine"]
            base = [*up, *(node.module or "").split(".")] if node.module else up
            if node.module:
                yield ".".join(base), node
            else:
                yield from ((".".join([*base, alias.name]), node) for alias in node.names)


def dotted(path: Path) -> str:
    """ "engine.ops.base" of engine/ops/base.py; weights/ is a folder of the package."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return f"engine.{name}" if name.startswith("weights") else name


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", [pytest.param(p, id=short(p)) for p in paths])


@each(sources("engine", "weights"))
def test_engine_imports_go_one_way(path: Path) -> None:
    def layer(dotted: str) -> str:
        name = dotted.split(".")[1] if "." in dotted else ""
        known = name in LEVEL or any((ROOT / "engine" / n).exists() for n in (f"{name}.py", name) if name)
        return name if known else ""  # LLM in `from . import LLM`: a name of engine/__init__.py

    me = layer(dotted(path))
    assert me in LEVEL, f"{short(path)} has no place in LAYERS"
    for name, node in imports(path):
        top = name.split(".")[0]
        assert top not in ("ostinato", "kernels"), f"{short(path)}:{node.lineno} imports {name}: import relatively"
        if top == "engine":
            assert layer(name) in LEVEL, f"{short(path)}:{node.lineno} imports {name}, which has no place in LAYERS"
            assert LEVEL[layer(name)] <= LEVEL[me], f"{short(path)}:{node.lineno} imports {name}, which stands above it"


@pytest.mark.parametrize("depth", [None, 2], ids=["modules", "folders"])
def test_no_import_goes_in_a_circle(depth: int | None) -> None:
    """Late imports count as well. Of folders: "engine.ops" is one, "engine.llm" as well."""
    modules = {dotted(path): path for path in sources("engine", "weights")}
    needs: dict[str, set[str]] = {}
    for me, path in modules.items():
        others = {name for name, _ in imports(path)} & modules.keys()
        needs.setdefault(_cut(me, depth), set()).update(_cut(name, depth) for name in others)
    needs = {me: others - {me} for me, others in needs.items()}
    while free := [name for name, needed in needs.items() if not needed & needs.keys()]:
        for name in free:
            del needs[name]
    assert not needs, f"modules that need one another, or are needed by such: {sorted(needs)}"


def _cut(name: str, depth: int | None) -> str:
    return ".".join(name.split(".")[:depth])


@each(sources("weights"))
def test_weights_know_little_of_the_engine(path: Path) -> None:
    """What a family says of its files, and how a file is complained of."""
    ours = {name for name, _ in imports(path) if name.split(".")[0] in ("engine", "ostinato", "kernels")}
    assert {name for name in ours if not name.startswith("engine.models.families")} <= {"engine.errors", "engine.keys"}


@each(sources("engine/models/families"))
def test_a_family_is_data(path: Path) -> None:
    """It knows nothing of tensors on a device, and is short; what families share is not: keys, rope, decoder."""
    may = ("engine.models.families", "engine.config", "engine.checks", "engine.errors", "engine.keys")
    assert [name for name, _ in imports(path) if name.startswith("engine") and not name.startswith(may)] == []
    shared = path.name in ("__init__.py", "keys.py", "rope.py", "decoder.py")
    assert shared or len(path.read_text(encoding="utf-8").splitlines()) <= 90


@each([p for p in sources("engine/models") if p.parent.name == "models" and p.name != "rope.py"])
def test_the_mathematics_imports_nothing(path: Path) -> None:
    may = {"__init__.py": "engine.models.", "weights.py": ("dataclasses", "typing")}.get(path.name, "nothing")
    assert [name for name, _ in imports(path) if name != "__future__" and not name.startswith(may)] == []


def test_sizes_imports_nothing() -> None:
    """So every module may import it."""
    assert [name for name, _ in imports(ROOT / "engine/sizes.py")] == []


@each(sources("engine", "weights"))
def test_cupy_is_imported_late_and_in_few_files(path: Path) -> None:
    tree = tree_of(path)
    early = {id(n) for n in tree.body}
    for name, node in imports(path):
        allowed = ALLOWED.get(name.split(".")[0])
        if allowed is not None:
            assert short(path) in allowed, f"{short(path)}:{node.lineno} imports {name}"
            assert id(node) not in early, f"{short(path)}:{node.lineno} imports {name} when the module is imported"


def test_importing_ostinato_imports_no_accelerator_library() -> None:
    code = "import sys, ostinato.cli.main; ostinato.LLM; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"cupy", "torch", "transformers"} & set(loaded)


def test_public_names() -> None:
    public = {n for n in dir(ostinato) if not n.startswith("_") and not isinstance(getattr(ostinato, n), ModuleType)}
    assert public - {"TYPE_CHECKING"} | {"__version__"} == set(ostinato.__all__)
    assert len(ostinato.__all__) == len(set(ostinato.__all__))


@each(sources(*FOLDERS))
def test_functions_fit_on_a_screen(path: Path) -> None:
    """ruff holds their complexity to 10 (C901)."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= 60, f"{short(path)}:{node.lineno} {node.name} has {lines} lines"


@each(sources("engine", "weights", "examples"))
def test_modules_and_what_they_offer_are_described(path: Path) -> None:
    tree = tree_of(path)
    if tree.body:
        assert ast.get_docstring(tree), f"{short(path)} has no docstring"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_") and node.name != "main":
            assert ast.get_docstring(node), f"{short(path)}:{node.lineno} {node.name} has no docstring"


def test_cuda_code_of_the_package_is_in_kernels() -> None:
    """With one exception, which says why."""
    found = {short(p) for p in sources("engine", "weights") if "__global__ void" in p.read_text(encoding="utf-8")}
    assert found == {"engine/tools/limits/sources.py"}


def test_kernels_hold_no_python() -> None:
    assert sorted(p.name for p in (ROOT / "kernels").rglob("*.py")) == []


def test_no_two_test_files_have_one_name() -> None:
    """pytest imports them by their names alone: a run of the whole suite would refuse the second."""
    names = [path.name for path in sources("tests") if path.name not in ("__init__.py", "conftest.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_packages_are_the_folders() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = set(config["options"]["packages"].split())
    folders = {p.parent.relative_to(ROOT / "engine") for p in sources("engine")}
    expected = {".".join(["ostinato", *folder.parts]) for folder in folders} | {"ostinato.kernels"}
    expected |= {".".join(["ostinato", *p.parent.relative_to(ROOT).parts]) for p in sources("weights")}
    assert listed == expected


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_wheel_holds_kernels_and_nothing_else(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("engine", "kernels", "weights"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"ostinato-{ostinato.__version__}-")
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    expected = {f"ostinato/kernels/{p.name}" for p in sources("kernels", suffixes=(".cu", ".cuh"))}
    expected |= {f"ostinato/weights/{p.relative_to(ROOT / 'weights').as_posix()}" for p in sources("weights")}
    engine = sources("engine", suffixes=(".py", ".txt"))
    expected |= {f"ostinato/{p.relative_to(ROOT / 'engine').as_posix()}" for p in engine}
    assert names == expected | {"ostinato/py.typed"}
    licences = [n for n in zipfile.ZipFile(wheel).namelist() if n.endswith("/LICENSE")]
    assert len(licences) == 1


TEXT = (".py", ".cu", ".cuh", ".h", ".cpp", ".md", ".cfg", ".toml", "")


def test_no_file_names_a_place_on_one_machine() -> None:
    place = re.compile(r"""(?:^|[\s"'`=(])/(home|root|Users|tmp|var|mnt|srv|opt|data|work|workspace)/[\w.-]""")
    files = [*sources(*FOLDERS, suffixes=TEXT), *(p for p in ROOT.iterdir() if p.suffix in TEXT), ROOT / ".ci/run"]
    files += sources("examples/results", suffixes=(".json",))
    found = []
    for path in files:
        if path.is_file() and path.name not in ("LICENSE", ".git"):  # .git: a file where the tree is one of several
            lines = path.read_text(encoding="utf-8").splitlines()
            found += [f"{short(path)}:{i}: {line.strip()}" for i, line in enumerate(lines, 1) if place.search(line)]
    assert found == []


def test_files_named_in_docs_are_there() -> None:
    """`engine/...`, `weights/...`, `kernels/...` and `tests/...` in backticks are paths from the root."""
    named = re.compile(r"`((?:engine|weights|kernels|tests)/[\w./-]+\.(?:py|cu|cuh|md))`")
    found = [(short(p), name) for p in sorted((ROOT / "docs").glob("*.md")) for name in named.findall(p.read_text())]
    assert found and [(doc, name) for doc, name in found if not (ROOT / name).exists()] == []
