"""Renders chat templates in a process of its own, where time and memory are bounded. A script, started by sandbox.py.

A template comes with a checkpoint and is a program: the sandbox keeps it from files and from Python, but not from
looping for ever or filling the memory, so those limits are the operating system's. Imports nothing of the engine.

Reads one JSON object a line: {"template": text}, once, then {"renderings": [variables, ...]}; answers each of the
latter with one line: {"texts": [...]}, {"refused": message} when the template itself raises, or {"failed": message}.
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

SECONDS = 0.5  # processor time of one request; ordinary templates need a hundredth
MEMORY = 256 * 2**20  # bytes beyond what the process has at its start
LONGEST = 16 * 2**20  # characters of one answer


class Refused(Exception):
    """What a template raises with raise_exception, and means for its user."""


class Generation(Extension):
    """{% generation %} ... {% endgeneration %} marks what is trained on; here it is just its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The nodes between the two tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> ImmutableSandboxedEnvironment:
    """Jinja2 as chat templates expect it: block trimming, loop controls, and a few functions."""
    e = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    e.filters["tojson"] = _tojson  # jinja2's own escapes for HTML
    e.globals["raise_exception"] = _raise_exception
    e.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return e


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: Any) -> NoReturn:
    raise Refused(str(message))


def answer(template: str, renderings: list[dict[str, Any]]) -> dict[str, Any]:
    """The reply to one request; a template that runs out of time ends the process instead."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # its signal ends the process, whatever it is doing
    try:
        compiled = environment().from_string(template)
        texts = [compiled.render(variables) for variables in renderings]
        if sum(map(len, texts)) > LONGEST:
            return {"failed": f"expected at most {LONGEST} characters of text, found {sum(map(len, texts))}"}
        return {"texts": texts}
    except Refused as e:
        return {"refused": str(e)[:1000]}
    except MemoryError:
        return {"failed": f"rendering needs more than {MEMORY // 2**20} MiB"}
    except TemplateError as e:
        number = getattr(e, "lineno", None)  # syntax errors have one
        line = f"line {number}: " if number else ""
        return {"failed": f"{line}{e}"[:1000]}
    except Exception as e:  # whatever the template's own expressions run into
        return {"failed": f"{type(e).__name__}: {e}"[:1000]}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
    """Serve requests until the other side closes."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the process that started this one may ignore or block it
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
