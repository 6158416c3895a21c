"""Chat templates: from messages to the token ids of a prompt.

A template writes control tokens round the messages, and the messages must not contain any: "<|im_end|>" in a user's
text is ten characters to the model. Where a message spells a control token, the template therefore gets a placeholder
in its stead, and the rest as it is, so that trimming, splitting or looking into a message works as ever and the ids
are those of the plain rendering but for the placeholder. The two renderings must agree, else the request is refused.

Rendering happens in a process of its own (sandbox.py).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..checks import flag, found, refuse, unicode
from ..errors import RequestError, TokenizerError
from .sandbox import Sandbox
from .tokenizer import Tokenizer, read_json, read_text

ROLES = ("system", "developer", "user", "assistant", "tool")  # some templates make control tokens of a role
LONGEST = 2**20  # characters of a template
LARGE = 2**16  # characters of a conversation, 64 for each message included; smaller ones are never too much to render
LONGEST_CHAT = 2**21  # characters of all messages together; what is longer fits no model, nor the renderer's memory

Message = dict[str, str]  # {"role": ..., "content": ...}


class ChatTemplate:
    """The chat template of one checkpoint."""

    def __init__(self, template: str, tokenizer: Tokenizer, source: str):
        if len(template) > LONGEST:
            raise TokenizerError(
                f"{source}: chat template: expected at most {LONGEST} characters, found {len(template)}"
            )
        self._tokenizer, self._source = tokenizer, source
        self._sandbox = Sandbox(template, source)
        self._control = ControlTexts(tokenizer.control.values())
        self._ends: tuple[int, ...] | None = None  # not looked for yet

    @staticmethod
    def from_checkpoint(checkpoint: Any, tokenizer: Tokenizer) -> ChatTemplate:
        """Of an open checkpoint: chat_template.jinja, else tokenizer_config.json, else GGUF metadata."""
        if checkpoint.directory is None:
            source, values = f"{checkpoint.source}: tokenizer.chat_template", checkpoint.metadata or {}
            return ChatTemplate(_text(values.get("tokenizer.chat_template"), source), tokenizer, str(checkpoint.source))
        path = Path(checkpoint.directory) / "chat_template.jinja"
        if path.is_file():
            return ChatTemplate(read_text(path), tokenizer, str(path))
        path = Path(checkpoint.directory) / "tokenizer_config.json"
        value = read_json(path).get("chat_template")
        return ChatTemplate(_text(value, f"{path}: chat_template"), tokenizer, str(path))

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any) -> str:
        """The prompt as text, as the template writes it; arguments and errors as `encode`."""
        return self._rendered(self._variables(_checked(messages), add_generation_prompt, variables))

    def encode(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        *,
        max_len: int | None = None,
        **variables: Any,
    ) -> list[int]:
        """Token ids of the prompt.

        messages: dicts of role (one of ROLES) and content; add_generation_prompt: end with the opening of the
        assistant's answer; max_len: tokens that the prompt must have fewer than, None = any number, looked at
        only where the text is so long that it cannot; variables: what else the template knows, such as enable_thinking.
        RequestError when a message is malformed, the template refuses it, or there are too many; TokenizerError when
        the template is wrong or exceeds its bounds."""
        messages = _checked(messages)
        variables = self._variables(messages, add_generation_prompt, variables)
        plain = self._rendered(variables)
        if max_len is not None and (least := self._tokenizer.at_least(plain, max_len)) >= max_len:
            raise RequestError(f"messages: expected fewer than {max_len} tokens (max_len), found at least {least}")
        marks = Marks()
        marked = [{**m, "content": marks.put(m["content"], self._control.spans(m["content"]))} for m in messages]
        if not marks.texts:
            return self._tokenizer.encode(plain, special=True, bos=False)
        text = self._rendered({**variables, "messages": marked})
        if marks.restore(text) != plain:
            spelled = ", ".join(sorted(map(found, set(marks.texts))))
            raise RequestError(f"messages: expected none of {spelled}, which the chat template acts upon")
        return self._tokenizer.encode_marked(text, marks.restore)

    def _rendered(self, variables: dict[str, Any]) -> str:
        """The text of a conversation; RequestError if it is the conversation that is too much for the template."""
        try:
            return self._sandbox.render([variables])[0]
        except TokenizerError as e:
            messages = variables["messages"]
            size = sum(len(m["content"]) for m in messages)
            small = size + 64 * len(messages) <= LARGE
            if small or not self._renders({**variables, "messages": [{**messages[0], "content": "x"}]}):
                raise
            why = str(e).removeprefix(f"{self._source}: chat template: ")
            raise RequestError(f"messages: expected a conversation that the chat template can render, found "
                               f"{len(messages)} messages of {size} characters in all: {why}") from e  # fmt: skip

    def _renders(self, variables: dict[str, Any]) -> bool:
        """Whether the template can do its work at all on this conversation; to refuse it is to do so."""
        try:
            self._sandbox.render([variables])
        except RequestError:
            pass
        except TokenizerError:
            return False
        return True

    def end_of_turn(self) -> tuple[int, ...]:
        """The control token that the template puts after an assistant's message, () if it puts none.

        Found by rendering a conversation, once. White space before the token is looked past. Where nothing follows the
        last message, the token that begins the next one is taken: a model that writes it has ended its answer."""
        if self._ends is None:
            word = f"x{secrets.token_hex(8)}x"  # no text of the template's own
            turns = [("user", "x"), ("assistant", word), ("user", "x")]
            messages = [{"role": role, "content": content} for role, content in turns]
            try:
                texts = self._sandbox.render([self._variables(messages[:n], False, {}) for n in (2, 3)])
            except (RequestError, TokenizerError):  # a template that takes other conversations only
                texts = []
            after = [text.rpartition(word)[2].lstrip() for text in texts if word in text]
            firsts = [self._tokenizer.encode(text, special=True, bos=False)[:1] for text in after]
            self._ends = next((tuple(ids) for ids in firsts if ids and ids[0] in self._tokenizer.control), ())
        return self._ends

    def close(self) -> None:
        """End the process that renders; the next rendering starts another."""
        self._sandbox.close()

    def _variables(self, messages: list[Message], add_generation_prompt: bool, more: dict[str, Any]) -> dict[str, Any]:
        flag("add_generation_prompt", add_generation_prompt)
        for name, value in more.items():
            if value is not None and not isinstance(value, (bool, int, float, str)):
                refuse(name, "a template variable that is a boolean, number or text", value)
        own = {"messages": messages, "add_generation_prompt": add_generation_prompt, "tools": None, "documents": None}
        return {**self._tokenizer.names, **more, **own}


class Marks:
    """Placeholders for parts of messages: words that nobody can foresee, and so nobody can write."""

    def __init__(self) -> None:
        self.texts: list[str] = []  # what each mark stands for
        self._key = secrets.token_hex(8)
        self._mark = re.compile(f"x{self._key}x([0-9]+)x")

    def put(self, text: str, spans: list[tuple[int, int]]) -> str:
        """The text with a mark in the place of each (begin, end)."""
        parts, start = [], 0
        for begin, end in spans:
            parts += [text[start:begin], f"x{self._key}x{len(self.texts)}x"]
            self.texts.append(text[begin:end])
            start = end
        return "".join([*parts, text[start:]])

    def restore(self, text: str) -> str:
        """The text with every mark replaced by what it stands for."""
        return self._mark.sub(lambda match: self.texts[int(match[1])], text)


class ControlTexts:
    """Finds in a text what is a control token, or could become one together with the text around it."""

    def __init__(self, control: Iterable[str]):
        tokens = sorted(filter(None, control), key=len, reverse=True)
        self._whole = re.compile("|".join(map(re.escape, tokens)) or r"(?!)")
        self._heads = {token[:i] for token in tokens for i in range(1, len(token))}
        self._tails = {token[i:] for token in tokens for i in range(1, len(token))}
        self._longest = len(tokens[0]) if tokens else 0

    def spans(self, text: str) -> list[tuple[int, int]]:
        """(begin, end) of each such part, in order and apart. Spaces at the ends are looked past: templates trim."""
        spans = [match.span() for match in self._whole.finditer(text)]
        begin, end = len(text) - len(text.lstrip()), len(text.rstrip())
        lengths = range(1, min(self._longest, end - begin + 1))
        spans += [(end - n, end) for n in lengths if text[end - n : end] in self._heads]
        spans += [(begin, begin + n) for n in lengths if text[begin : begin + n] in self._tails]
        merged: list[tuple[int, int]] = []
        for low, high in sorted(spans):
            if merged and low < merged[-1][1]:
                low, high = merged[-1][0], max(high, merged.pop()[1])
            merged.append((low, high))
        return merged


def _text(value: Any, source: str) -> str:
    """A template from the value of a key: a text, or a list of named ones, of which "default" is taken."""
    if isinstance(value, list):
        named: dict[str, Any] = {str(t.get("name")): t.get("template") for t in value if isinstance(t, dict)}
        if "default" not in named:
            raise TokenizerError(f"{source}: expected one named default, found {', '.join(named) or 'none'}")
        value = named["default"]
    if not isinstance(value, str):
        what = "nothing (this model has no chat template)" if value is None else found(value)
        raise TokenizerError(f"{source}: expected a text, found {what}")
    return value


def _checked(messages: Any) -> list[Message]:
    """The messages, copied; RequestError names the first field that is not as it must be."""
    if not isinstance(messages, (list, tuple)) or not messages:
        refuse("messages", "a list of at least one message", messages)
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            refuse(f"messages[{i}]", "an object with role and content and nothing else", message)
        if message["role"] not in ROLES:
            refuse(f"messages[{i}].role", "one of " + ", ".join(ROLES), message["role"])
        content = message["content"]
        if not isinstance(content, str):
            refuse(f"messages[{i}].content", "a text", content)
        unicode(f"messages[{i}].content", content)
    if (total := sum(len(m["content"]) for m in messages)) > LONGEST_CHAT:
        refuse("messages", f"at most {LONGEST_CHAT} characters in all", total)
    return [dict(m) for m in messages]
