"""The `ostinato` command: generate, chat, embed, compare, bench, inspect, tune, doctor.

Text goes to stdout, everything else to stderr. With --json, stdout is one JSON object. An error is one line on stderr
and exit status 2; Ctrl-C gives 130, a closed pipe 141. A command imports slow modules itself, so that --help is fast.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_type_hints

from ..checks import unicode
from ..config import SamplingParams
from ..errors import EngineError, RequestError
from ..report import print_json, say, tell_warnings, terminal
from ..tools import tune
from ..tools.bench import command as bench
from ..tools.inspect import command as inspect
from ..tools.options import add, several
from . import embed, stdin

if TYPE_CHECKING:
    from .. import LLM, RequestOutput, Stream

INTERRUPTED, CLOSED_PIPE = 130, 141  # exit statuses: 128 + signal number, as in shells

_SAMPLING = [f for f in fields(SamplingParams) if "help" in f.metadata]  # options of generate and chat
# errors of stdout, if the exception names no file
_OF_STDOUT = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose error message is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help lists the options)\n")

    def print_help(self, file: Any = None) -> None:
        """Print to stdout. argparse's own method hides that stdout cannot be written."""
        print(self.format_help(), end="", file=file)


def parser() -> Parser:
    """All commands and their options."""
    main = Parser(prog="ostinato", description="Small-batch transformer inference, replayed as CUDA graphs.")
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")

    generate = commands.add_parser("generate", help="continue a prompt", description="Continue a prompt.")
    _model_options(generate)
    _memory_option(generate)
    generate.add_argument("prompt", metavar="PROMPT", help="the text to continue; - reads it from stdin")
    generate.add_argument("--chat", action="store_true", help="PROMPT is a message; use the model's chat template")
    generate.add_argument(
        "--parse-special", action="store_true", help="read control tokens in PROMPT as such; unsafe for untrusted text"
    )
    _sampling_options(generate)
    generate.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    generate.set_defaults(run=run_generate)

    chat = commands.add_parser(
        "chat", help="talk to a model", description="Talk to a model; /reset forgets, /exit ends."
    )
    _model_options(chat)
    _memory_option(chat)
    chat.add_argument("--system", help="a system message at the beginning of the conversation")
    _sampling_options(chat)
    chat.set_defaults(run=run_chat)

    compare = commands.add_parser(
        "compare", help="backends and graphs against each other", description="Speed and agreement of the backends."
    )
    _compare_options(compare)
    compare.set_defaults(run=run_compare)

    embed.add_command(commands, _model_options)
    bench.add_command(commands)
    inspect.add_command(commands)
    tune.add_command(commands)

    doctor = commands.add_parser(
        "doctor", help="what works here", description="What works here, and how to fix the rest."
    )
    doctor.add_argument("--json", action="store_true", help="print a JSON list")
    doctor.add_argument(
        "--extra", action="store_true", help="print only which extra to install: cuda12, cuda13 or nothing"
    )
    doctor.add_argument("--graph-limits", action="store_true", help="ask this GPU what a CUDA graph can hold")
    doctor.set_defaults(run=run_doctor)
    return main


def _model_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", metavar="MODEL", help="a directory, a .gguf file, an alias (smollm2-135m), or org/name")
    add(p, "--backend", "--graph", "--dtype")
    p.add_argument("--max-len", type=int, help="tokens of a prompt and its completion (default: the model's limit)")
    p.add_argument("--nvtx", action="store_true", help="named ranges for CUDA profilers, such as nsys")


def _memory_option(p: argparse.ArgumentParser) -> None:
    p.add_argument("--gpu-memory", type=float, metavar="X", help="device memory to use: a share if at most 1, else GB")


def _sampling_options(p: argparse.ArgumentParser) -> None:
    """Add an option for each field of SamplingParams that has a help text, with its name and type."""
    kinds = get_type_hints(SamplingParams)
    for f in _SAMPLING:
        kind = next(t for t in (bool, int, float, str) if t in (kinds[f.name], *get_args(kinds[f.name])))
        how: dict[str, Any] = {"type": kind, "metavar": {int: "N", float: "X", str: "TEXT"}.get(kind)}
        if kind is bool:
            how = {"action": "store_true"}
        elif kind is str:
            how["action"] = "append"
        p.add_argument(f"--{f.name.replace('_', '-')}", dest=f.name, default=None, help=f.metadata["help"], **how)


def _compare_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", metavar="MODEL", help="a directory, a .gguf file, an alias (smollm2-135m), or org/name")
    several(p, "--backends", "cuda,cublas")
    several(p, "--graphs", "off,layer,step")
    p.add_argument("--reference", help="backend to compare the others with (default: cublas, or the first)")
    p.add_argument(
        "--windows", type=int, default=4, metavar="N", help="pieces of text to compare logits on (4); 0 = none"
    )
    p.add_argument("--tokens", type=int, default=256, metavar="N", help="tokens in a piece (256)")
    p.add_argument("--decode", type=int, default=128, metavar="N", help="tokens decoded to measure speed (128)")
    p.add_argument("--batch", type=int, default=1, metavar="N", help="sequences decoded together to measure speed (1)")
    add(p, "--dtype")
    p.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def _load(args: argparse.Namespace) -> LLM:
    from .. import LLM

    tell_warnings()
    return LLM(args.model, backend=args.backend, graph=args.graph, dtype=args.dtype, max_batch=1, max_len=args.max_len,
               gpu_memory=args.gpu_memory, nvtx=args.nvtx)  # fmt: skip


def _params(args: argparse.Namespace) -> SamplingParams:
    return SamplingParams(**{f.name: getattr(args, f.name) for f in _SAMPLING if getattr(args, f.name) is not None})


def run_generate(args: argparse.Namespace) -> int:
    """Print the continuation while it is generated, or as JSON at the end. Returns the exit status."""
    params = _params(args)  # first, so that a wrong option fails before the model loads
    if args.chat and args.parse_special:
        raise RequestError("--parse-special: expected without --chat, as the chat template writes the control tokens")
    prompt = stdin.read() if args.prompt == "-" else args.prompt
    special = args.parse_special
    messages = [{"role": "user", "content": prompt}]
    with _load(args) as llm:
        if args.json:
            out = llm.chat(messages, params) if args.chat else llm.generate(prompt, params, parse_special=special)[0]
            print_json(_record(llm, out))
            return 0
        chunks = llm.stream_chat(messages, params) if args.chat else llm.stream(prompt, params, parse_special=special)
        out = _stream(chunks)
        say("ostinato", _figures(out))
    return 0


def _record(llm: LLM, out: RequestOutput) -> dict[str, Any]:
    """The JSON object of --json."""
    timings = {"load_s": llm.load_s, "ttft_ms": out.ttft * 1e3, "decode_tok_s": out.decode_tok_s}
    return {
        "text": out.text,
        "token_ids": out.token_ids,
        "finish_reason": out.finish_reason,
        "prompt_tokens": out.prompt_tokens,
        "completion_tokens": out.completion_tokens,
        "backend": llm.backend,
        "graph": llm.graph,
        "timings": {k: None if v is None else round(v, 3) for k, v in timings.items()},
    }


def _stream(chunks: Stream) -> RequestOutput:
    """Print each chunk as it arrives. Returns the finished output."""
    output = None
    with chunks:  # a closed pipe or Ctrl-C frees the pages of the KV cache before it propagates
        for chunk in chunks:
            print(chunk.text, end="", flush=True)
            output = chunk.output or output
    print(flush=True)
    if output is None:
        raise RuntimeError("the stream ended without its output")
    return output


def _figures(out: RequestOutput) -> str:
    rate = "" if out.decode_tok_s is None else f", {out.decode_tok_s:.1f} tokens/s"
    return f"{out.completion_tokens} tokens, first after {out.ttft * 1e3:.0f} ms{rate}, finish: {out.finish_reason}"


def run_chat(args: argparse.Namespace) -> int:
    """Answer each line of stdin, with the conversation so far, until end of input or /exit. Returns the exit status."""
    params = _params(args)
    begin = [{"role": "system", "content": unicode("--system", args.system)}] if args.system else []
    history = list(begin)
    with _load(args) as llm:
        llm.runner  # noqa: B018  refuses an encoder before the user types
        for line in stdin.lines():
            if line == "/exit":
                break
            if line == "/reset":
                history = list(begin)
                continue
            question = {"role": "user", "content": line}
            try:
                out = _stream(llm.stream_chat([*history, question], params))
            except RequestError as e:  # for example, the conversation no longer fits
                say("ostinato", f"{_one_line(e)}; /reset starts a new conversation")
                continue
            history += [question, {"role": "assistant", "content": out.text}]
    return 0


def run_compare(args: argparse.Namespace) -> int:
    """Run `compare` and print a table or JSON. Returns the exit status."""
    from ..tools import compare

    settings = compare.Settings(
        model=args.model,
        backends=tuple(args.backends.split(",")),
        graphs=tuple(args.graphs.split(",")),
        reference=args.reference,
        windows=args.windows,
        tokens=args.tokens,
        decode=args.decode,
        batch=args.batch,
        dtype=args.dtype,
    )
    report = compare.compare(settings)
    if args.json:
        print_json(report.record())
    else:
        compare.print_table(report)
    return 0


def run_doctor(args: argparse.Namespace) -> int:
    """Run `doctor`. Returns the exit status."""
    from ..tools import doctor

    return doctor.main(as_json=args.json, only_extra=args.extra, graph_limits=args.graph_limits)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status."""
    try:
        status = _run(argv)
        sys.stdout.flush()  # here, so that a failure is still reported
        return status
    except KeyboardInterrupt:
        if terminal(sys.stderr):
            print(file=sys.stderr)  # end the line of ^C
        lose_unwritten(sys.stdout)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of the pipe closed it
        lose_unwritten(sys.stdout)
        return CLOSED_PIPE
    except (EngineError, OSError, UnicodeEncodeError, MemoryError) as e:
        say("ostinato", _reason(e))
        lose_unwritten(sys.stdout)
        return 2


def _run(argv: Sequence[str] | None) -> int:
    try:
        args = parser().parse_args(argv)
        return args.run(args)
    except SystemExit as e:  # argparse raises it after --help and after an error
        return e.code if isinstance(e.code, int) else 2


def _reason(e: BaseException) -> str:
    """The message of an error, in one line."""
    if isinstance(e, UnicodeEncodeError) and e.encoding != "utf-8":
        found = ascii(e.object[e.start])
        return f"stdout: expected text in {e.encoding}, found {found}; PYTHONIOENCODING=utf-8 can write it"
    if isinstance(e, OSError) and e.errno in _OF_STDOUT and e.filename is None:
        return f"stdout: cannot be written: {e.strerror}"
    return _one_line(e) or type(e).__name__


def _one_line(e: BaseException) -> str:
    return " ".join(str(e).split())


def lose_unwritten(stream: Any) -> None:
    """Discard the buffer of stdout or stderr if it cannot be written, as the interpreter would try again at exit."""
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
