"""Renders chat templates in a separate process with limits on time and memory. sandbox.py runs this script.

A template is a program that comes with a checkpoint. Jinja2's sandbox denies it files and Python, but it could still
loop for ever or fill the memory. The operating system enforces those two limits. The script imports no other module of
the engine.

Input is one JSON object per line: first {"template": text}, then any number of {"renderings": [variables, ...]}. Each
of the latter is answered by one line: {"texts": [...]}, {"refused": message} if the template calls raise_exception, or
{"failed": message}.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 0.5  # CPU time of one request; ordinary templates need a hundredth of it
MEMORY = 256 * 2**20  # bytes in addition to the size of the process at its start
MAX_ANSWER = 16 * 2**20  # characters


class Refused(Exception):
    """A template called raise_exception: it refuses the messages."""


class Generation(Extension):
    """{% generation %} ... {% endgeneration %}. It marks text that training learns from; here its content is output."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The nodes between the two tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> ImmutableSandboxedEnvironment:
    """Jinja2 with what chat templates rely on: block trimming, loop controls and three functions."""
    e = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    e.filters["tojson"] = _tojson  # Jinja2's own filter escapes for HTML
    e.globals["raise_exception"] = _raise_exception
    e.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return e


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: Any) -> NoReturn:
    raise Refused(str(message))


def answer(template: str, renderings: list[dict[str, Any]]) -> dict[str, Any]:
    """The reply to one request. A template that exceeds the CPU time ends the process instead."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # SIGPROF ends the process at any point
    try:
        compiled = environment().from_string(template)
        texts = [compiled.render(variables) for variables in renderings]
        if sum(map(len, texts)) > MAX_ANSWER:
            return {"failed": f"expected at most {MAX_ANSWER} characters of text, found {sum(map(len, texts))}"}
        return {"texts": texts}
    except Refused as e:
        return {"refused": str(e)[:1000]}
    except MemoryError:
        return {"failed": f"rendering needs more than {MEMORY // 2**20} MiB"}
    except TemplateError as e:
        number = getattr(e, "lineno", None)  # only syntax errors have it
        line = f"line {number}: " if number else ""
        return {"failed": f"{line}{e}"[:1000]}
    except Exception as e:  # any error of an expression in the template
        return {"failed": f"{type(e).__name__}: {e}"[:1000]}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
    """Serve requests until stdin is closed."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the parent may ignore or block it, and that is inherited
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    with open("/proc/self/statm") as statm:
        size = int(statm.read().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    template = json.loads(sys.stdin.readline())["template"]
    for line in sys.stdin:
        reply = json.dumps(answer(template, json.loads(line)["renderings"]))
        print(reply, flush=True)


if __name__ == "__main__":
    main()
