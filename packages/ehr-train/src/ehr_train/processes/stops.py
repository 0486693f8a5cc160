"""Stops: signals that end training in good order, with a checkpoint."""

import os
import signal
import threading
import time
from types import TracebackType
from typing import Any

from ehr_core.errors import EhrError

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
PARENT = "EHR_TRAIN_PARENT"
"""Environment variable: the process that a worker belongs to."""


class Stopped(EhrError):
    """A signal ended training; what was done is kept, and the message says how to go on."""

    def __init__(self, message: str, number: int = signal.SIGTERM):
        super().__init__(message)
        self.number = number

    @property
    def exit_status(self) -> int:
        """What a shell expects of a program that a signal ended: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.number


class Stops:
    """A context in which the first of `SIGNALS` is noted rather than obeyed; a second one acts as it always did.

    Does nothing outside of the main thread, which alone may catch signals.
    """

    def __init__(self) -> None:
        self.number = 0
        """The signal that came, 0 for none."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stops":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                    self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: Any) -> None:
        self.number = number
        self._release()

    def _release(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def clear(self) -> int:
        """The signal that came, which counts as answered from here on."""
        number, self.number = self.number, 0
        return number


def name_of(number: int) -> str:
    """``SIGTERM`` and so on; ``a signal`` for none of this process."""
    return signal.Signals(number).name if number else "a signal"


def end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, seen in two ways.

    Standard input is a pipe of the parent's, and every second this process looks whose child it is: a pipe stays open
    when some other process has inherited it.
    """
    parent = int(os.environ.get(PARENT, os.getppid()))

    def until_closed() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    def until_orphaned() -> None:
        while os.name == "nt" or os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    for watch in (until_closed, until_orphaned):
        threading.Thread(target=watch, daemon=True).start()
