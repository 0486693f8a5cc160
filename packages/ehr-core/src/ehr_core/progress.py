"""A progress bar for whatever takes longer than a second, on a terminal or as sparse lines in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

Item = TypeVar("Item")


class Progress:
    """Counts towards a total on stderr. Silent for the first second, so that quick work prints nothing."""

    def __init__(self, label: str, total: int | None, unit: str = "", stream: TextIO | None = None):
        self.label, self.total, self.unit = label, total, unit
        self.stream = sys.stderr if stream is None else stream
        self.live = self.stream.isatty()
        self.started = time.monotonic()
        self.every = 0.1 if self.live else 10.0
        self.next = self.started + 1.0
        self.done = 0
        self.shown = False

    def update(self, count: int = 1, note: str = "") -> None:
        """Advance by ``count``."""
        self.done += count
        now = time.monotonic()
        if now >= self.next:
            self.next = now + self.every
            self._show(now, note)

    def _show(self, now: float, note: str = "") -> None:
        self.shown = True
        seconds = now - self.started
        text = f"{self.label}: {self.done:,}"
        if self.total:
            share = min(self.done / self.total, 1.0)
            left = seconds / share - seconds if share else float("nan")
            text = f"{self.label}: {'#' * int(20 * share):<20} {share:4.0%} of {self.total:,}"
            note = f"{left:.0f} s left  {note}"
        text = f"{text} {self.unit}  {seconds:.0f} s  {note}".rstrip()
        self.stream.write(f"\r{text[:118]:<118}" if self.live else text + "\n")
        self.stream.flush()

    def close(self) -> None:
        """End the line, if one was ever shown."""
        if self.shown:
            self._show(time.monotonic())
            if self.live:
                self.stream.write("\n")
        self.shown = False


def track(items: Iterable[Item], label: str, total: int | None = None, unit: str = "") -> Iterator[Item]:
    """The items, with a progress bar around them."""
    bar = Progress(label, total, unit)
    try:
        for item in items:
            yield item
            bar.update()
    finally:
        bar.close()
