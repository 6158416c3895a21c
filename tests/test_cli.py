"""The command line: one object with --json, one line for an error, the exit statuses."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ostinato
from ostinato.cli import main as cli
from ostinato.tools import doctor

FIXTURES = Path(__file__).parent / "fixtures"
LLAMA = str(FIXTURES / "llama")
NUMPY = ("--backend", "numpy")
NO_GPU = not doctor.driver().gpus

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*args: str) -> tuple[int, str, str]:
        code = cli.main(args)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="module")
def llm():
    with ostinato.LLM(LLAMA, backend="numpy", quiet=True) as llm:
        yield llm


@pytest.mark.parametrize("graph", ["off", "layer", "step"])
def test_json_is_one_object(run: Run, llm: ostinato.LLM, graph: str) -> None:
    code, out, _ = run("generate", LLAMA, "The river", "--max-tokens", "9", "--graph", graph, "--json", *NUMPY)
    assert code == 0
    found = json.loads(out)
    expected = llm.generate(["The river"], ostinato.SamplingParams(max_tokens=9))[0]
    timings = found.pop("timings")
    assert found == {
        "text": expected.text,
        "token_ids": expected.token_ids,
        "finish_reason": expected.finish_reason,
        "prompt_tokens": len(llm.tokenizer.encode("The river")),
        "completion_tokens": len(expected.token_ids),
        "backend": "numpy",
        "graph": graph,
    }
    assert set(timings) == {"load_s", "ttft_ms", "decode_tok_s"}
    assert all(v > 0 for v in timings.values())


@pytest.mark.parametrize(
    "options",
    [
        pytest.param("", id="greedy"),
        pytest.param("--chat", id="chat"),
        pytest.param("--temperature 0.9 --seed 7 --top-k 20 --top-p 0.9 --min-p 0.01", id="sampled"),
        pytest.param("--repetition-penalty 1.3 --presence-penalty 0.5 --frequency-penalty 0.5", id="penalties"),
    ],
)
def test_streamed_text_is_the_text(run: Run, options: str) -> None:
    args = ("generate", LLAMA, "The miller", "--max-tokens", "12", *NUMPY, *options.split())
    code, out, err = run(*args)
    assert code == 0
    assert json.loads(run(*args, "--json")[1])["text"] + "\n" == out
    assert re.search(r"\d+ tokens, first after \d+ ms", err)


def test_prompt_from_stdin(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ("--max-tokens", "5", "--json", *NUMPY)
    expected = json.loads(run("generate", LLAMA, "sacks of flour", *args)[1])
    monkeypatch.setattr(sys, "stdin", io.StringIO("sacks of flour"))
    assert json.loads(run("generate", LLAMA, "-", *args)[1])["token_ids"] == expected["token_ids"]


def test_stop_ends_before_its_text(run: Run) -> None:
    args = ("generate", LLAMA, "The river", "--max-tokens", "12", "--json", "--ignore-eos", *NUMPY)
    whole = json.loads(run(*args)[1])
    stop = whole["text"][3:5]
    cut = json.loads(run(*args, "--stop", stop)[1])
    assert (cut["text"], cut["finish_reason"]) == (whole["text"][: whole["text"].index(stop)], "stop")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        pytest.param((), "COMMAND", id="no-command"),
        pytest.param(("generate", LLAMA), "PROMPT", id="no-prompt"),
        pytest.param(("generate", LLAMA, "x", "--no-such"), "--no-such", id="unknown-option"),
        pytest.param(("generate", LLAMA, "x", "--max-tokens", "many"), "--max-tokens", id="not-a-number"),
        pytest.param(("generate", LLAMA, "x", "--backend", "abacus"), "abacus", id="unknown-backend"),
        pytest.param(("generate", LLAMA, "x", "--temperature", "3"), "temperature", id="temperature"),
        pytest.param(("generate", LLAMA, "x", "--temperature", "nan"), "temperature", id="nan"),
        pytest.param(("generate", LLAMA, "x", "--top-p", "0"), "top_p", id="top-p"),
        pytest.param(("generate", LLAMA, "x", "--max-tokens", "0"), "max_tokens", id="max-tokens"),
        pytest.param(("generate", LLAMA, "x", "--stop", ""), "stop", id="empty-stop"),
        pytest.param(("generate", "no/such/model", "x", *NUMPY), "no/such/model", id="no-model"),
        pytest.param(("generate", __file__, "x", *NUMPY), Path(__file__).name, id="not-a-checkpoint"),
        pytest.param(("compare", LLAMA, "--batch", "0"), "batch", id="compare-batch"),
        pytest.param(("compare", LLAMA, "--backends", "abacus"), "abacus", id="compare-backend"),
    ],
)
def test_bad_input_is_one_line_and_2(run: Run, args: tuple[str, ...], says: str) -> None:
    code, out, err = run(*args)
    lines = [line for line in err.splitlines() if not line.startswith("compare: ")]
    assert (code, out, len(lines)) == (2, "", 1)
    assert lines[0].startswith("ostinato") and says in lines[0]


def test_error_after_loading_is_the_last_line(run: Run) -> None:
    code, out, err = run("generate", LLAMA, "The river", "--max-tokens", "1000", *NUMPY)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("ostinato: ") and "Traceback" not in err


@pytest.mark.skipif(not NO_GPU, reason="there is a GPU here")
@pytest.mark.parametrize("backend", ["cuda", "cublas"])
@pytest.mark.parametrize("command", [("generate", LLAMA, "x", "--backend"), ("compare", LLAMA, "--backends")])
def test_no_silent_fallback(run: Run, command: tuple[str, ...], backend: str) -> None:
    code, out, err = run(*command, backend)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("ostinato: ") and "backend" in err


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The message texts of every call of stream_chat."""
    calls: list[list[str]] = []
    real = ostinato.LLM.stream_chat

    def spy(llm, messages, params=None):
        calls.append([m["content"] for m in messages])
        return real(llm, messages, params)

    monkeypatch.setattr(ostinato.LLM, "stream_chat", spy)
    return calls


def test_chat_remembers_until_reset(run: Run, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\ntwo\n/reset\nthree\n/exit\nfour\n"))
    code, out, _ = run("chat", LLAMA, "--system", "be brief", "--max-tokens", "2", "--ignore-eos", *NUMPY)
    assert code == 0
    reply = asked[1][2]
    assert asked == [["be brief", "one"], ["be brief", "one", reply, "two"], ["be brief", "three"]]
    assert reply and out.startswith(reply + "\n")


def test_chat_survives_what_does_not_fit(run: Run, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    long = "too long " * 40
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{long}\nHi\n"))
    code, out, err = run("chat", LLAMA, "--max-tokens", "2", "--ignore-eos", *NUMPY)
    assert code == 0 and out
    assert asked == [[long.strip()], ["Hi"]]
    assert "/reset starts a new conversation" in err


def start(*args: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ostinato", *args, *NUMPY]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)


@pytest.mark.slow
def test_ctrl_c_is_130() -> None:
    with start("chat", LLAMA, "--max-tokens", "4", "--ignore-eos") as process:
        assert process.stdin and process.stdout
        process.stdin.write(b"Hi\n")
        process.stdin.flush()
        process.stdout.read(1)  # it has begun to answer
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err and b"ostinato: LLM" not in err


@pytest.mark.slow
def test_a_closed_pipe_is_141() -> None:
    with start("generate", LLAMA, "The river", "--max-tokens", "50", "--ignore-eos") as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(timeout=60) == 141
    assert b"Traceback" not in err and b"BrokenPipe" not in err


@pytest.mark.parametrize("command", ["generate", "chat", "compare", "doctor", ""])
def test_help(run: Run, command: str) -> None:
    code, out, err = run(*command.split(), "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: ostinato {command}".rstrip())


def test_parse_special(run: Run, llm: ostinato.LLM) -> None:
    text = "<|im_start|>user"
    for more, special in (([], False), (["--parse-special"], True)):
        code, out, _ = run("generate", LLAMA, text, "--max-tokens", "2", "--json", *more, *NUMPY)
        assert (code, json.loads(out)["prompt_tokens"]) == (0, len(llm.tokenizer.encode(text, special=special)))
    code, out, err = run("generate", LLAMA, text, "--max-tokens", "2", "--parse-special", *NUMPY)
    expected = llm.generate(text, ostinato.SamplingParams(max_tokens=2), parse_special=True)[0].text
    assert (code, out) == (0, expected + "\n")
    code, out, err = run("generate", LLAMA, text, "--chat", "--parse-special", *NUMPY)
    assert (code, out) == (2, "") and "--parse-special: expected without --chat" in err and err.count("\n") == 1
