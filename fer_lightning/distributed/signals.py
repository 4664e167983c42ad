"""Signals that ask a run to end: deferred during training until it can be resumed, handled at once at other times."""

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
"""Preemption and `kill`, Ctrl-C, and SLURM's warning (`--signal=USR1@90`) that the time limit is near."""

PARENT_CHECK = 0.5
"""Seconds between checks of whether the parent process is alive."""

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
    """The requests to end that have arrived.

    Attributes:
        received: the first signal's number, or 0.
        deferred: while set, signals are only recorded; whoever sets it checks `received` where the run can be resumed.
    """

    def __init__(self) -> None:
        self.received = 0
        self.deferred = False
        self._since = 0.0

    def install(self) -> None:
        """Install the handlers; call it again after a library has installed its own."""
        if threading.current_thread() is threading.main_thread():  # signal.signal works in no other
            for signum in SIGNALS:
                signal.signal(signum, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        insists = self.received == signum == signal.SIGINT and time.monotonic() - self._since > INSIST
        if not self.received:
            self.received, self._since = signum, time.monotonic()
        if insists or not self.deferred:
            raise Interrupted(self.received)


interrupts = Interrupts()
"""Of this process: signals are global."""


def ignore_at_exit() -> None:
    """Ignore requests to end while the interpreter shuts down: their default action would fail a finished run."""
    for signum in SIGNALS:
        if signum != signal.SIGINT:
            atexit.register(signal.signal, signum, signal.SIG_IGN)


def end_with_parent() -> None:
    """Send this process SIGTERM when its parent is gone, and SIGKILL 30 seconds later."""
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
    """Within the block signals raise Interrupted, or are recorded while `deferred`; the handlers are restored after it.

    Yields:
        The process's interrupts, with nothing received.
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
