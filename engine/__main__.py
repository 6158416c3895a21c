"""The `ostinato` command as a process: standard streams, Ctrl-C and exit status. cli/main.py has the commands.

Ctrl-C ends the process with status 130 from the first line on. Imports take a third of a second, and a
KeyboardInterrupt during an import could be swallowed or printed as a traceback. So this module imports little.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # type checkers assume True; importing typing takes time
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> NoReturn:
    """Run the command of sys.argv and end the process."""
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a shell's & ignores SIGINT
    if interruptible:
        signal.signal(signal.SIGINT, _leave)
    _open_streams()
    from .cli import main as cli

    try:
        if interruptible:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        status = cli.main()
    except KeyboardInterrupt:
        status = cli.INTERRUPTED
    finally:
        if interruptible:
            signal.signal(signal.SIGINT, _leave)
    cli.lose_unwritten(sys.stderr)
    sys.exit(status)


def _leave(*signal_and_frame: object) -> NoReturn:
    os._exit(130)


def _open_streams() -> None:
    """Open /dev/null in place of a closed stdin, stdout or stderr; else the next opened file would get its number.

    Reading a closed stdin or writing a closed stdout is then an ordinary error. Output to a closed stderr is lost."""
    for fd, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)  # gets the lowest free number: fd
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - open until the process ends
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115


if __name__ == "__main__":
    main()
