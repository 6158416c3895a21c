"""The `ostinato` command as a process: its standard streams, Ctrl-C and exit status. What it does is in cli.py.

Ctrl-C ends it from the first line on with status 130: importing takes a third of a second, and an exception raised
meanwhile would be swallowed or shown as a traceback by whatever is being imported. So this module imports little.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # but type checkers take it as true; typing takes its time
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> NoReturn:
    """Run the command of sys.argv and end the process."""
    heeds = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it runs behind a shell's &
    if heeds:
        signal.signal(signal.SIGINT, _leave)
    _open_streams()
    from .cli import main as cli

    try:
        if heeds:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        status = cli.main()
    except KeyboardInterrupt:
        status = cli.INTERRUPTED
    finally:
        if heeds:
            signal.signal(signal.SIGINT, _leave)
    cli.lose_unwritten(sys.stderr)
    sys.exit(status)


def _leave(*signal_and_frame: object) -> NoReturn:
    os._exit(130)


def _open_streams() -> None:
    """Put something where stdin, stdout or stderr is closed, or the next file that is opened takes its number.

    A closed stdin cannot be read and a closed stdout not be written, which is an error like any other as soon as it is
    tried. Nobody can be told of a closed stderr: what goes there is lost."""
    for fd, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)  # the lowest number that is free: fd
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - as long as the process
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115


if __name__ == "__main__":
    main()
