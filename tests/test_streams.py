"""The command as a process: standard streams that are closed, full or not UTF-8, and Ctrl-C during start-up."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ostinato import LLM, SamplingParams, report

FIXTURES = Path(__file__).parent / "fixtures"
OSTINATO = f"{sys.executable} -m ostinato"
FEW = "--backend numpy --max-tokens 3 --ignore-eos"
GENERATE = f"{OSTINATO} generate {FIXTURES / 'llama'} {FEW}"
CHAT = f"{OSTINATO} chat {FIXTURES / 'llama'} {FEW}"
EMBED = f"{OSTINATO} embed {FIXTURES / 'bert'} café --backend numpy"
NEW = "stdout: cannot be written: No space left on device"
HALF = "expected Unicode text, found half a surrogate pair at character"


def shell(command: str, **environment: str) -> tuple[int, bytes, list[str]]:
    """(exit status, stdout, lines of stderr without those about loading a model)."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(["bash", "-c", command], capture_output=True, env={**plain, **environment}, timeout=60)
    lines = [line.removeprefix("ostinato: ") for line in done.stderr.decode().splitlines()]
    return (
        done.returncode,
        done.stdout,
        [line for line in lines if not line.startswith(("backend ", "memory: ", "graph "))],
    )


@pytest.mark.parametrize(
    ("command", "environment", "says"),
    [
        pytest.param(f"{GENERATE} x > /dev/full", {}, NEW, id="full"),
        pytest.param(f"{GENERATE} x > /dev/full", {"PYTHONUNBUFFERED": "1"}, NEW, id="full-unbuffered"),
        pytest.param(f"{GENERATE} x --json > /dev/full", {}, NEW, id="full-json"),
        pytest.param(f"{OSTINATO} --help > /dev/full", {}, NEW, id="full-help"),
        pytest.param(f"{OSTINATO} --help > /dev/full", {"PYTHONUNBUFFERED": "1"}, NEW, id="full-help-unbuffered"),
        pytest.param(f"{OSTINATO} doctor > /dev/full", {}, NEW, id="full-doctor"),
        pytest.param(f"{EMBED} > /dev/full", {}, NEW, id="full-embed"),
        pytest.param(f"{GENERATE} x >&-", {}, "stdout: cannot be written: Bad file descriptor", id="stdout-closed"),
        pytest.param(f"{GENERATE} - <&-", {}, "stdin: cannot be read: Bad file descriptor", id="stdin-closed"),
        pytest.param(f"{CHAT} <&-", {}, "stdin: cannot be read: Bad file descriptor", id="chat-stdin-closed"),
        pytest.param(f"printf 'caf\\xe9' | {GENERATE} -", {"PYTHONIOENCODING": "utf-8:strict"},
                     "stdin: expected utf-8, found byte 0xe9 after 3 characters", id="not-utf8"),
        pytest.param(f"printf 'caf\\xe9' | {GENERATE} -", {"LC_ALL": "C"},
                     "stdin: expected utf-8, found byte 0xe9 after 3 characters", id="not-utf8-in-the-c-locale"),
        pytest.param(rf"{GENERATE} x --stop $'a\xe9'", {}, f"stop[0]: {HALF} 1", id="stop-not-utf8"),
        pytest.param(rf"{CHAT} --system $'\xe9' <<< x", {}, f"--system: {HALF} 0", id="system-not-utf8"),
        pytest.param(rf"{GENERATE} $'ab\xe9'", {}, f"prompt: {HALF} 2", id="prompt-not-utf8"),
        pytest.param(EMBED, {"PYTHONIOENCODING": "ascii"},
                     r"stdout: expected text in ascii, found '\xe9'; PYTHONIOENCODING=utf-8 can write it", id="ascii"),
    ],
)  # fmt: skip
def test_one_line_and_2(command: str, environment: dict[str, str], says: str) -> None:
    code, _, lines = shell(command, **environment)
    assert (code, lines) == (2, [says])


@pytest.mark.parametrize(
    ("command", "code"),
    [
        pytest.param(f"{GENERATE} x 2>&-", 0, id="closed"),
        pytest.param(f"{GENERATE} x 2>/dev/full", 0, id="full"),
        pytest.param(f"{GENERATE} x 2>&- <&-", 0, id="closed-and-stdin"),
        pytest.param(f"{OSTINATO} generate no-such/model x --backend numpy 2>&-", 2, id="an-error"),
        pytest.param(f"{OSTINATO} generate 2>&-", 2, id="an-option"),
        pytest.param(f"{GENERATE} x >&- 2>&- <&-", 2, id="everything-closed"),
    ],
)
def test_nothing_but_text_on_stdout_without_stderr(command: str, code: int) -> None:
    with LLM(FIXTURES / "llama", backend="numpy", quiet=True) as llm:
        text = llm.generate("x", SamplingParams(max_tokens=3, ignore_eos=True))[0].text
    found, out, lines = shell(command)
    assert (found, lines) == (code, [])
    assert out.decode() == (f"{text}\n" if not code else "")


def test_chat_survives_a_line_that_is_not_text() -> None:
    code, out, lines = shell(f"printf 'one\\ncaf\\xe9\\ntwo\\n' | {CHAT}", PYTHONIOENCODING="utf-8:strict")
    assert (code, lines) == (0, ["stdin: expected utf-8, found byte 0xe9 after 3 characters"])
    assert out.count(b"\n") >= 2


@pytest.mark.parametrize("imported", ["argparse", "numpy", "ostinato.config", "tokenizers"])
def test_ctrl_c_while_importing(imported: str) -> None:
    """Ctrl-C is sent right after the import of a module, which -X importtime reports."""
    command = [sys.executable, "-X", "importtime", "-m", "ostinato", "generate", str(FIXTURES / "llama"), "x"]
    command += ["--backend", "numpy"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr
        while line := process.stderr.readline().decode():
            if line.split("|")[-1].strip() == imported:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read().decode()
    assert (process.returncode, "Traceback" in rest, "Interrupt" in rest) == (130, False, False)


@pytest.mark.parametrize("stderr", [None, io.StringIO()], ids=["none", "closed"])
def test_a_service_without_stderr_loads_a_model(
    stderr: io.StringIO | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if stderr is not None:
        stderr.close()
    monkeypatch.setattr(sys, "stderr", stderr)
    LLM(FIXTURES / "llama", backend="numpy").close()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("encoding", "text"), [("utf-8", '"é"'), ("ascii", r'"\u00e9"'), ("latin-1", r'"\u00e9"')])
def test_json_is_written_in_any_encoding(encoding: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
    report.print_json("é")
    sys.stdout.flush()
    assert raw.getvalue().decode("utf-8") == text + "\n" and json.loads(raw.getvalue()) == "é"


def test_a_line_that_stderr_cannot_encode_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, "ascii", errors="strict"))
    report.say("ostinato", "no café")
    assert raw.getvalue() == b"ostinato: no caf\\xe9\n"


def test_a_warning_is_a_line_like_the_others() -> None:
    done = subprocess.run(["bash", "-c", f"{GENERATE} 'a <|im_end|>'"], capture_output=True, text=True, timeout=60)
    (line,) = [line for line in done.stderr.splitlines() if "<|im_end|>" in line]
    assert line.startswith("ostinato: prompt: '<|im_end|>' is taken as plain characters")
