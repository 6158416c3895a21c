"""Forking a process with a model on a GPU: in the child every call raises DeviceError, and its exit is silent."""

from __future__ import annotations

import pytest
from programs import LLAMA, run

PROGRAM = f"""
llm.close()
llm = LLM({str(LLAMA)!r}, backend="cuda", quiet=True)
right = llm.generate("The river", GREEDY)[0].text
stream = llm.stream("The river", GREEDY)
text = next(stream).text
calls = (lambda: llm.generate("x", GREEDY), lambda: llm.stream("x", GREEDY), lambda: llm.chat(say("x")),
         lambda: llm.logits([1]), lambda: llm.max_len, lambda: next(stream), lambda: llm.runner.synchronize())
for call in calls:
    said = forked(call)
    assert said.startswith("DeviceError: ") and "forked" in said, said
def leave():
    global llm, stream
    stream.close(); llm.close()
    del stream, llm
    import gc; gc.collect()
assert forked(leave) == "None"
assert text + "".join(chunk.text for chunk in stream) == right
assert llm.generate("The river", GREEDY)[0].text == right
"""


@pytest.mark.gpu
def test_calls_in_a_forked_child_fail_immediately() -> None:
    pytest.importorskip("cupy")
    run(PROGRAM)
