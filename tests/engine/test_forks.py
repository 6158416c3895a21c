"""An LLM in forked processes: every program runs in its own process and checks what it sees."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from programs import LLAMA, cases, run, succeeds

from ostinato.process import forks

PROGRAMS = {
    "while-a-progress-bar-is-drawn": """
from ostinato.report import Reporter
bar = Reporter(quiet=False).late_bar("prompt", 0)
bar._silent = False
threading.Thread(target=bar._lock.acquire).start()
while not bar._lock.locked(): pass
assert forked(lambda: bar.update(0, 2) or bar.update(2, 2) or "drawn") == "drawn"
""",
    "a-child-starts-a-renderer-of-its-own": """
right = answer("one")
def child():
    fresh = renderer() is None
    return fresh, answer("one") == right, renderer()._process.pid != parents
parents = renderer()._process.pid
assert forked(child) == "(True, True, True)"
assert answer("one") == right and renderer()._process.pid == parents
""",
    "a-child-has-no-pipe-of-the-parent": """
answer("one")
pipes = {os.readlink(f"/proc/self/fd/{p.fileno()}") for p in (renderer()._stdin, renderer()._stdout)}
def child():
    links = set()
    for fd in os.listdir("/proc/self/fd"):
        try: links.add(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError: pass
    return pipes & links
assert forked(child) == "set()"
""",
    "two-processes-do-not-read-each-others-answers": """
words = ["sun " * n for n in range(1, 20)]
right = [answer(w) for w in words]
def child(): return [answer(w) for w in reversed(words)] == right[::-1]
results = []
threads = [threading.Thread(target=lambda: results.append(forked(child))) for _ in range(2)]
for t in threads: t.start()
for _ in range(5):
    assert [answer(w) for w in words] == right
for t in threads: t.join()
assert results == ["True", "True"]
""",
    "the-parent-closes-while-the-child-lives": """
right = answer("one")
read, write = os.pipe()
pid = os.fork()
if not pid:
    os.read(read, 1)
    os._exit(0 if answer("one") == right and llm.generate("x", GREEDY)[0].completion_tokens == 6 else 1)
process = renderer()._process
llm.close()
assert process.returncode is not None
os.write(write, b"x")
assert os.waitpid(pid, 0)[1] == 0
""",
    "close-in-a-child-leaves-the-parents-renderer": """
right = answer("one")
assert forked(llm.close) == "None"
assert renderer()._process.poll() is None and answer("one") == right
""",
    "a-lock-held-by-another-thread-is-free-in-a-child": """
answer("one")
held, done = threading.Event(), threading.Event()
def hold():
    with llm._template._sandbox._lock, llm.tokenizer._lock:
        held.set(); done.wait()
thread = threading.Thread(target=hold)
thread.start(); held.wait()
said = forked(lambda: len(answer("one")) > 0 and llm.generate("x", GREEDY)[0].completion_tokens)
done.set(); thread.join()
assert said == "6"
""",
    "a-stream-open-while-forking": """
right = llm.generate("The river", GREEDY)[0].text
stream = llm.stream("The river", GREEDY)
text = next(stream).text
def child():
    assert llm.generate("The river", GREEDY)[0].text == right
    try: next(stream)
    except RequestError as e: assert "forked" in str(e)
    else: return "it went on"
    stream.close()
    assert llm.runner.table.free == llm.runner.table.pages - 1
    return llm.generate("The river", GREEDY)[0].text == right
assert forked(child) == "True"
assert text + "".join(chunk.text for chunk in stream) == right
assert llm.runner.table.free == llm.runner.table.pages - 1
""",
    "a-stream-of-another-thread-does-not-lock-a-child-out": """
right = llm.generate("The river", GREEDY)[0].text
stream, began, done = llm.stream("The river", GREEDY), threading.Event(), threading.Event()
def other():
    next(stream); began.set(); done.wait()
thread = threading.Thread(target=other)
thread.start(); began.wait()
said = forked(lambda: llm.generate("The river", GREEDY)[0].text)
done.set(); thread.join()
assert said == right
""",
    "children-do-not-all-choose-alike": """
hot = SamplingParams(max_tokens=12, temperature=2.0, ignore_eos=True)
def child(): return llm.generate("The river", hot)[0].token_ids
found = {forked(child) for _ in range(2)} | {str(child())}
assert len(found) == 3, found
""",
    "with-a-seed-they-do": """
llm = LLM(MODEL, backend="numpy", seed=7, quiet=True)
hot = SamplingParams(max_tokens=12, temperature=2.0, ignore_eos=True)
def child(): return llm.generate("The river", hot)[0].token_ids
found = {forked(child) for _ in range(2)} | {str(child())}
assert len(found) == 1, found
""",
    "a-pre-forking-server": """
right = answer("one")
def serve(reads, writes):
    while word := os.read(reads, 100).decode():
        os.write(writes, str(answer(word) == llm.chat_prompt(say(word)) and llm.chat(say(word), GREEDY).text).encode())
workers = []
for _ in range(3):
    (a, b), (c, d) = os.pipe(), os.pipe()
    if not (pid := os.fork()):
        for fd in (b, c, *[fd for w in workers for fd in w[1:]]): os.close(fd)
        serve(a, d)
        sys.exit(0)
    os.close(a); os.close(d)
    workers.append((pid, b, c))
for word in ("one", "two"):
    for _, b, _ in workers: os.write(b, word.encode())
    assert {os.read(c, 1000).decode() for _, _, c in workers} == {llm.chat(say(word), GREEDY).text}
for pid, b, c in workers:
    os.close(b)
    assert os.waitpid(pid, 0)[1] == 0
assert answer("one") == right
""",
    "a-thread-that-drives-for-asyncio": """
import asyncio
from ostinato import AsyncLLM
other = AsyncLLM(llm)
async def text():
    chunks = [chunk.text async for chunk in other.stream("The river", GREEDY)]
    return "".join(chunks) == (await other.generate("The river", GREEDY))[0].text
def run(): return asyncio.run(asyncio.wait_for(text(), 20))
assert run() and forked(run) == "True" and run()
assert forked(other.close) == "None"
assert run()
""",
    "a-gpu-in-a-child": """
from ostinato.ops.device import HostDevice
class Gpu(HostDevice):
    destroyed = []
    name = "Some GPU"
    def __init__(self): self.end_at_fork()
    def __del__(self): os.write(2, b"destroyed")
from ostinato.ops.numpy import NumpyOps
ops = NumpyOps(); ops.device = Gpu()
gpu = LLM(MODEL, ops=ops, quiet=True)
right, stream = gpu.generate("x", GREEDY)[0].text, gpu.stream("x", GREEDY)
next(stream)
for call in (lambda: gpu.generate("x", GREEDY), lambda: gpu.stream("x", GREEDY), lambda: gpu.chat(say("x")),
             lambda: gpu.logits([1]), lambda: gpu.max_len, lambda: next(stream), lambda: ops.device.synchronize(),
             lambda: ops.device.upload(None)):
    said = forked(call)
    assert said.startswith("DeviceError: Some GPU: expected the process that opened it"), said
assert forked(lambda: (stream.close(), gpu.close())) == "(None, None)"
stream.close()
assert gpu.generate("x", GREEDY)[0].text == right
os.write(1, b"as expected"); os._exit(0)
""",
    "multiprocessing-fork": """
import multiprocessing
with multiprocessing.get_context("fork").Pool(2) as pool:
    right = [answer(w) for w in ("one", "two", "three")]
    assert pool.map(answer, ("one", "two", "three")) == right
assert [answer(w) for w in ("one", "two", "three")] == right
""",
    "a-model-is-not-pickled": """
import copy, pickle
for call in (pickle.dumps, copy.copy, copy.deepcopy):
    try: call(llm)
    except RequestError as e: assert "create one there" in str(e)
    else: raise AssertionError(call)
""",
}


@cases(PROGRAMS)
def test_forked(program: str) -> None:
    run(program)


SERVER = f"""
import multiprocessing, sys
from ostinato import LLM, SamplingParams
if __name__ != "__main__":  # a worker imports this file, or the server that forks them does
    llm = LLM({str(LLAMA)!r}, backend="numpy", quiet=True)
    llm.chat_prompt([{{"role": "user", "content": "one"}}])

def work(word):
    params = SamplingParams(max_tokens=6, ignore_eos=True)
    return llm.chat([{{"role": "user", "content": word}}], params).text

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    context.set_forkserver_preload(["__main__"])
    with context.Pool(2) as pool:
        first, *others = pool.map(work, ["one"] * 6, 1)
    assert first and set(others) == {{first}}
    print("as expected")
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_multiprocessing(tmp_path: Path, method: str) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    succeeds(str(tmp_path / "server.py"), method)


def test_actions_of_many_threads_are_all_kept() -> None:
    """Threads register concurrently; entries of collected objects disappear."""

    class Thing:
        def act(self) -> None:
            pass

    def make(_: int) -> list[Thing]:
        things = [Thing() for _ in range(200)]
        for thing in things:
            forks.in_child(thing.act)
        return things

    before, usual = len(forks._actions), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            kept = list(pool.map(make, range(4)))
    finally:
        sys.setswitchinterval(usual)
    acted = [method.__self__ for action in forks._actions.values() if (method := action()) is not None]
    assert {id(thing) for things in kept for thing in things} <= {id(thing) for thing in acted}
    del kept, acted, method
    forks.in_child(Thing().act)
    assert len(forks._actions) <= before + 1
