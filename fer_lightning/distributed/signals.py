"""Signals that ask a run to end: kept while it trains until it can be gone on with, obeyed at once at other times."""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
"""Preemption and `kill`, Ctrl-C, and SLURM's warning (`--signal=USR1@90`) that the time is nearly up."""

PARENT_CHECK = 0.5
"""Seconds between a rank's looks at whether its parent still lives."""

INSIST = 1.0
"""Seconds after which a second Ctrl-C means "now"; launchers may pass the first one on twice."""


class Interrupted(SystemExit):
    """A signal ended the run; the exit code is 128 + its number (143 for SIGTERM, 130 for Ctrl-C), as in a shell.

    A SystemExit, so that no handler of errors between here and the entry point takes it for a failed job.

    Attributes:
        signum: the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum

    def __str__(self) -> str:
        return f"ended by {signal.Signals(self.signum).name}"


class Interrupts:
    """What has been asked for so far.

    Attributes:
        received: the first signal's number, or 0.
        deferred: while set, signals are only noted; who sets it looks at `received` where the run can end well.
    """

    def __init__(self) -> None:
        self.received = 0
        self.deferred = False
        self._since = 0.0

    def install(self) -> None:
        """Handle the signals here; again after a library has put its own handlers in the way."""
        if threading.current_thread() is threading.main_thread():  # Python allows no other to
            for signum in SIGNALS:
                signal.signal(signum, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        insists = self.received == signum == signal.SIGINT and time.monotonic() - self._since > INSIST
        if not self.received:
            self.received, self._since = signum, time.monotonic()
        if insists or not self.deferred:
            raise Interrupted(self.received)


interrupts = Interrupts()
"""Of this process: signals have no other owner."""


def ignore_at_exit() -> None:
    """While the interpreter shuts down, requests to end come too late: by their default they would make a run that is
    finished one that failed."""
    for signum in SIGNALS:
        if signum != signal.SIGINT:
            atexit.register(signal.signal, signum, signal.SIG_IGN)


def end_with_parent() -> None:
    """Ask this process to end in good order as soon as its parent is gone: nothing may train on unseen."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


@contextmanager
def handled() -> Iterator[Interrupts]:
    """Signals raise Interrupted, at once or, where `deferred`, where the run can end well; handlers are put back after.

    Yields:
        The process's interrupts, with nothing received yet.
    """
    before: dict[int, Any] = {signum: signal.getsignal(signum) for signum in SIGNALS}
    interrupts.received, interrupts.deferred = 0, False
    interrupts.install()
    try:
        yield interrupts
    finally:
        interrupts.deferred = False
        if threading.current_thread() is threading.main_thread():
            for signum, handler in before.items():
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)
