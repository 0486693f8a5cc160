"""Executors: an ordered map over independent pieces of work."""

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from ehr_core.errors import ConfigError, EhrError
from ehr_core.plugin import ProcessesConfig, SerialConfig

Item = TypeVar("Item")
Result = TypeVar("Result")


class Serial:
    """Runs every item in this process, when its result is asked for."""

    def __init__(self, settings: SerialConfig):
        self.settings = settings

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Results in order."""
        return map(function, items)


def _end_with_parent() -> None:
    """End this worker when the process that started it is gone: a kill leaves it no chance to end the pool itself."""

    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent.sentinel,), daemon=True).start()


def _watch(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


class Processes:
    """Runs items in a pool of spawned processes (forking a process with threads can deadlock)."""

    def __init__(self, settings: ProcessesConfig):
        if settings.num_workers < 1:
            raise ConfigError(f"executor.num_workers is {settings.num_workers}; it must be at least 1")
        self.settings = settings

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Results in order. Raises EhrError that names the item whose process died."""
        if not items:
            return
        context = multiprocessing.get_context("spawn")
        workers = min(self.settings.num_workers, len(items))
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
            futures = [pool.submit(function, item) for item in items]
            try:
                for item, future in zip(items, futures, strict=True):
                    try:
                        yield future.result()
                    except BrokenProcessPool as error:
                        raise EhrError(
                            f"a worker process died at or before {item}; it may have run out of memory: "
                            "use fewer executor.num_workers"
                        ) from error
            finally:
                for future in futures:
                    future.cancel()
