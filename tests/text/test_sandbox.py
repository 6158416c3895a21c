"""Templates that loop, grow, escape or are wrong: each ends quickly in an error, and the next rendering works."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import pytest
from vocabularies import CHATML, user

from ostinato.errors import RequestError, TokenizerError
from ostinato.text.template import MAX_CHAT, ChatTemplate
from ostinato.text.tokenizer import Tokenizer


def make(template: str, tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate(template, tokenizer, "tiny")


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
# What is to run out of memory or characters must do so soon, or a slow machine's template runs out of time before:
# growth in large steps writes little, and `messages` keeps jinja2 from working the text out when it compiles.
GROW = "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x * 64 %}{% endfor %}"
LONG = "{{ messages[0].content * 17 * 2**20 }}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        pytest.param(LOOP, "takes too long", id="nested-loops"),
        pytest.param("{{ 9**(9**9) }}", "takes too long", id="power"),
        pytest.param("{{ lipsum(n=1000000) }}", "takes too long", id="endless-text"),
        pytest.param("{{ 'a' * 10**9 }}", "needs more than 256 MiB", id="long-text"),
        pytest.param("{{ 'a' | center(10**9) }}", "needs more than 256 MiB", id="long-by-filter"),
        pytest.param(GROW, "needs more than 256 MiB", id="growing"),
        pytest.param(LONG, "expected at most 16777216 characters", id="long-answer"),
        pytest.param("{{ range(10**9) | list }}", "Range too big", id="range"),
        pytest.param("{{ " + "(" * 5000, "line 1|Recursion", id="deep"),
        pytest.param("{{ 'a' }", "line 1: unexpected", id="syntax"),
        pytest.param("\n{% if %}{% endif %}", "line 2: Expected an expression", id="syntax-second-line"),
        pytest.param("{% include 'x' %}", "no loader", id="include"),
        pytest.param("{{ ''.__class__.__mro__ }}", "unsafe", id="escape-by-class"),
        pytest.param("{{ cycler.__init__.__globals__.os }}", "unsafe", id="escape-by-globals"),
        pytest.param("{{ messages.append(1) }}", "unsafe", id="change-of-messages"),
        pytest.param("{{ 1 / 0 }}", "ZeroDivisionError", id="division"),
        pytest.param("{{ messages[0].nothing.more }}", "no attribute", id="undefined"),
        pytest.param("{{ none + 1 }}", "TypeError", id="types"),
    ],
)
def test_bad_template(tokenizer: Tokenizer, template: str, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(TokenizerError, match=rf"^tiny: chat template: .*(?:{message})") as e:
        make(template, tokenizer).encode(user("x"))
    assert "\n" not in str(e.value)
    assert time.monotonic() - started < 10  # half a second of processor time, on a machine with other work to do


def test_template_too_long(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="tiny: chat template: expected at most 1048576 characters, found 1048577"):
        make(" " * (2**20 + 1), tokenizer)


def test_next_rendering_after_a_killed_one(tokenizer: Tokenizer) -> None:
    t = make("{% if messages[0].content == 'loop' %}" + LOOP + "{% endif %}ok", tokenizer)
    for _ in range(2):
        with pytest.raises(TokenizerError, match="too long"):
            t.render(user("loop"))
        assert t.render(user("x")) == "ok"


def test_one_process_serves_many_renderings(tokenizer: Tokenizer) -> None:
    t = make(CHATML, tokenizer)
    assert t.render(user("a" * 1_000_000)) == f"<|im_start|>user\n{'a' * 1_000_000}<|im_end|>\n<|im_start|>assistant\n"
    child = t._sandbox._child
    assert child is not None and t.render(user("b")) and t._sandbox._child is child
    t.close()
    assert child.returncode is not None
    assert t.render(user("b"))  # another one


def test_longest_chat(tokenizer: Tokenizer) -> None:
    t = make("{{ messages[0].content | trim }}", tokenizer)
    longest = "<|im_end|>" + "😀" * (MAX_CHAT - 10)
    assert t.render(user(longest)) == longest
    with pytest.raises(RequestError, match=f"messages: expected at most {MAX_CHAT} .*, found {MAX_CHAT + 1}"):
        t.render(user(longest, "x"))


def test_process_ends_with_its_template(tokenizer: Tokenizer) -> None:
    t = make(CHATML, tokenizer)
    t.render(user("x"))
    child = t._sandbox._child
    assert child is not None
    process = child._process
    del t, child
    gc.collect()
    assert process.returncode is not None


def test_working_directory_is_not_imported(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert make("ok", tokenizer).render(user("x")) == "ok"


def test_a_conversation_too_long_to_render_is_the_callers_fault(tokenizer: Tokenizer) -> None:
    slow = CHATML + "{% if messages | length > 20000 %}" + LOOP + "{% endif %}"
    with pytest.raises(
        RequestError, match=r"^messages: expected .* can render, found 20001 messages of 20001 char"
    ) as e:
        make(slow, tokenizer).encode(user(*["x"] * 20_001))
    assert "takes too long" in str(e.value) and "tiny" not in str(e.value)


def test_a_long_conversation_does_not_excuse_a_wrong_template(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"^tiny: chat template: .*takes too long"):
        make(LOOP, tokenizer).encode(user(*["x"] * 20_001))
