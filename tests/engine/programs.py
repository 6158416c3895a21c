"""Programs that tests run in separate processes, each with a small LLM."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LLAMA = Path(__file__).resolve().parents[1] / "fixtures/llama"

BEGIN = f"""
import os, signal, sys, threading, time
signal.alarm(50)
from ostinato import LLM, DeviceError, RequestError, SamplingParams

def forked(body, *args):
    "What body returns in a forked child, which ends as programs end: finalizers and all."
    sys.stdout.flush()
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        signal.alarm(40)
        try:
            said = str(body(*args))
        except Exception as e:
            said = f"{{type(e).__name__}}: {{e}}"
        os.write(write, said.encode())
        sys.exit(0)
    os.close(write)
    with open(read) as answer:
        said = answer.read()
    os.waitpid(pid, 0)
    return said

MODEL = {str(LLAMA)!r}
llm = LLM(MODEL, backend="numpy", quiet=True)
GREEDY = SamplingParams(max_tokens=6, ignore_eos=True)
def say(word): return [{{"role": "user", "content": word}}]
def renderer(llm=llm): return llm._template._sandbox._child
def answer(word): return llm.chat_prompt(say(word))
"""


def cases(programs: dict[str, str]) -> pytest.MarkDecorator:
    """One pytest parameter per program."""
    return pytest.mark.parametrize("program", [pytest.param(text, id=name) for name, text in programs.items()])


def succeeds(*command: str) -> None:
    """Run Python. It must print "as expected", write nothing to stderr and exit with 0."""
    # Python 3.12 and later warn if a process with threads forks
    plain = [sys.executable, "-W", "ignore::DeprecationWarning", *command]
    done = subprocess.run(plain, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("as expected", "", 0)


def run(program: str) -> None:
    """Run BEGIN, then a program."""
    succeeds("-c", BEGIN + program + "\nprint('as expected')\n")
