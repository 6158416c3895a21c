"""Chat templates: messages to the token ids of a prompt.

A template writes control tokens around the messages. A message must not contain any: "<|im_end|>" in a user's text is
ten characters. So the template is rendered twice. In the second rendering, a placeholder replaces each part of a
message that spells a control token. Control tokens are read in this rendering, and then each placeholder is replaced by
its characters. The template may still trim, split or inspect a message. The request is refused if the two renderings
differ in more than the placeholders.

sandbox.py renders in a separate process.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..checks import flag, found, refuse, unicode
from ..errors import RequestError, TokenizerError
from ..weights.files import is_listed
from .sandbox import Sandbox
from .tokenizer import Tokenizer, read_json, read_text

ROLES = ("system", "developer", "user", "assistant", "tool")  # no others: some templates write <|ROLE|>
MAX_TEMPLATE = 2**20  # characters
SMALL_CHAT = 2**16  # characters, plus 64 per message; if a smaller chat fails to render, the template is at fault
MAX_CHAT = 2**21  # characters of all messages; more fits neither a model nor the renderer's memory

Message = dict[str, str]  # {"role": ..., "content": ...}


class ChatTemplate:
    """The chat template of one checkpoint."""

    def __init__(self, template: str, tokenizer: Tokenizer, source: str):
        if len(template) > MAX_TEMPLATE:
            raise TokenizerError(
                f"{source}: chat template: expected at most {MAX_TEMPLATE} characters, found {len(template)}"
            )
        self._tokenizer, self._source = tokenizer, source
        self._sandbox = Sandbox(template, source)
        self._control = ControlTexts(tokenizer.control.values())
        self._ends: tuple[int, ...] | None = None  # not searched yet

    @staticmethod
    def from_checkpoint(checkpoint: Any, tokenizer: Tokenizer) -> ChatTemplate:
        """The template of an open checkpoint. A directory has it in chat_template.jinja or tokenizer_config.json."""
        if checkpoint.directory is None:
            source, values = f"{checkpoint.source}: tokenizer.chat_template", checkpoint.metadata or {}
            return ChatTemplate(_text(values.get("tokenizer.chat_template"), source), tokenizer, str(checkpoint.source))
        path = Path(checkpoint.directory) / "chat_template.jinja"
        if is_listed(path):
            return ChatTemplate(read_text(path), tokenizer, str(path))
        path = Path(checkpoint.directory) / "tokenizer_config.json"
        value = read_json(path).get("chat_template")
        return ChatTemplate(_text(value, f"{path}: chat_template"), tokenizer, str(path))

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any) -> str:
        """The text of the prompt, as the template writes it. Arguments and errors as in `encode`."""
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

        messages: dicts with role (one of ROLES) and content.
        add_generation_prompt: end with the opening of the assistant's answer.
        max_len: the prompt must have fewer tokens. Only the length of the text is checked. None: no limit.
        variables: other variables of the template, such as enable_thinking.

        RequestError if a message is malformed, the template refuses the messages, or they are too long. TokenizerError
        if the template is invalid or exceeds a limit."""
        messages = _checked(messages)
        variables = self._variables(messages, add_generation_prompt, variables)
        plain = self._rendered(variables)
        if max_len is not None and (least := self._tokenizer.at_least(plain, max_len)) >= max_len:
            raise RequestError(f"messages: expected fewer than {max_len} tokens (max_len), found at least {least}")
        marks = Placeholders()
        marked = [{**m, "content": marks.put(m["content"], self._control.spans(m["content"]))} for m in messages]
        if not marks.texts:
            return self._tokenizer.encode(plain, special=True, bos=False)
        text = self._rendered({**variables, "messages": marked})
        if marks.restore(text) != plain:
            spelled = ", ".join(sorted(map(found, set(marks.texts))))
            raise RequestError(f"messages: expected none of {spelled}, as the chat template treats it specially")
        return self._tokenizer.encode_marked(text, marks.restore)

    def _rendered(self, variables: dict[str, Any]) -> str:
        """The text of a conversation. RequestError if the template renders a small conversation but not this one."""
        try:
            return self._sandbox.render([variables])[0]
        except TokenizerError as e:
            messages = variables["messages"]
            size = sum(len(m["content"]) for m in messages)
            small = size + 64 * len(messages) <= SMALL_CHAT
            if small or not self._renders({**variables, "messages": [{**messages[0], "content": "x"}]}):
                raise
            why = str(e).removeprefix(f"{self._source}: chat template: ")
            raise RequestError(f"messages: expected a conversation that the chat template can render, found "
                               f"{len(messages)} messages of {size} characters in all: {why}") from e  # fmt: skip

    def _renders(self, variables: dict[str, Any]) -> bool:
        """Whether the template renders or refuses this conversation, without exceeding a limit."""
        try:
            self._sandbox.render([variables])
        except RequestError:
            pass
        except TokenizerError:
            return False
        return True

    def end_of_turn(self) -> tuple[int, ...]:
        """The control token that the template writes after an assistant's message; () if there is none.

        It is found by rendering a short conversation, once. White space before the token is skipped. If nothing follows
        the last message, it is the token that begins the next message: a model that writes it has ended its answer."""
        if self._ends is None:
            word = f"x{secrets.token_hex(8)}x"  # a word that the template does not contain
            turns = [("user", "x"), ("assistant", word), ("user", "x")]
            messages = [{"role": role, "content": content} for role, content in turns]
            try:
                texts = self._sandbox.render([self._variables(messages[:n], False, {}) for n in (2, 3)])
            except (RequestError, TokenizerError):  # the template does not accept this conversation
                texts = []
            after = [text.rpartition(word)[2].lstrip() for text in texts if word in text]
            firsts = [self._tokenizer.encode(text, special=True, bos=False)[:1] for text in after]
            self._ends = next((tuple(ids) for ids in firsts if ids and ids[0] in self._tokenizer.control), ())
        return self._ends

    def close(self) -> None:
        """End the renderer's process. The next rendering starts a new one."""
        self._sandbox.close()

    def _variables(self, messages: list[Message], add_generation_prompt: bool, more: dict[str, Any]) -> dict[str, Any]:
        flag("add_generation_prompt", add_generation_prompt)
        for name, value in more.items():
            if value is not None and not isinstance(value, (bool, int, float, str)):
                refuse(name, "a template variable that is a boolean, number or text", value)
        own = {"messages": messages, "add_generation_prompt": add_generation_prompt, "tools": None, "documents": None}
        return {**self._tokenizer.names, **more, **own}


class Placeholders:
    """Random words that stand for parts of messages. No message can contain one, as it cannot be guessed."""

    def __init__(self) -> None:
        self.texts: list[str] = []  # the text behind each placeholder
        self._key = secrets.token_hex(8)
        self._pattern = re.compile(f"x{self._key}x([0-9]+)x")

    def put(self, text: str, spans: list[tuple[int, int]]) -> str:
        """The text with a placeholder for each (begin, end)."""
        parts, start = [], 0
        for begin, end in spans:
            parts += [text[start:begin], f"x{self._key}x{len(self.texts)}x"]
            self.texts.append(text[begin:end])
            start = end
        return "".join([*parts, text[start:]])

    def restore(self, text: str) -> str:
        """The text with each placeholder replaced by its original."""
        return self._pattern.sub(lambda match: self.texts[int(match[1])], text)


class ControlTexts:
    """Finds control tokens in a message, and the ends of a message that may form one with the text around it."""

    def __init__(self, control: Iterable[str]):
        tokens = sorted(filter(None, control), key=len, reverse=True)
        self._whole = re.compile("|".join(map(re.escape, tokens)) or r"(?!)")
        self._heads = {token[:i] for token in tokens for i in range(1, len(token))}
        self._tails = {token[i:] for token in tokens for i in range(1, len(token))}
        self._longest = len(tokens[0]) if tokens else 0

    def spans(self, text: str) -> list[tuple[int, int]]:
        """(begin, end) of each such part, in order and apart. White space at the ends is skipped: templates trim."""
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
    """The template in the value of a key: a text, or the one named "default" of a list."""
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
    """A copy of the messages. RequestError names the first invalid field."""
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
    if (total := sum(len(m["content"]) for m in messages)) > MAX_CHAT:
        refuse("messages", f"at most {MAX_CHAT} characters in all", total)
    return [dict(m) for m in messages]
