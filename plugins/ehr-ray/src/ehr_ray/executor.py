"""An ordered map over the tasks of a Ray cluster.

A cluster of our own listens on the loopback address alone, has no dashboard, and reports no usage. It starts with the
first work and stops with the process. All executors of a process share it, as Ray knows one cluster a process: an
executor that stopped it at its own end would pull it from under the others.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from ehr_core.errors import ConfigError, EhrError

from ehr_ray.plugin import RayConfig

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2
"""Tasks that are submitted per CPU before the first of them is done: enough that no CPU waits for this process."""
QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Keeps Ray's servers on 127.0.0.1, on Linux too. Ray reads both when it is imported."""


class Ray:
    """Runs items as Ray tasks. Raises ConfigError for settings out of range or a cluster that is not there."""

    def __init__(self, settings: RayConfig):
        if settings.num_cpus < 1:
            raise ConfigError(f"executor.num_cpus is {settings.num_cpus}; it must be at least 1")
        self.settings = settings

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Results in order. An error names its item: EhrErrors as they are, with a note; the death of a worker too.

        At most a few tasks a CPU are under way at once, so results that nobody has asked for yet do not pile up.
        """
        if not items:
            return
        ray = self._connected()
        task = ray.remote(num_cpus=1, max_retries=0)(_call)
        shared = ray.put(function)  # sent once; it may be anything that can be called, also a partial
        waiting: deque[tuple[Item, Any]] = deque()
        for item in items:
            waiting.append((item, task.remote(shared, item)))
            if len(waiting) >= AHEAD * self.settings.num_cpus:
                yield _result(ray, *waiting.popleft())
        while waiting:
            yield _result(ray, *waiting.popleft())

    def _connected(self) -> Any:
        """The module ray, connected to a cluster. Raises EhrError when there is none."""
        address = self.settings.address
        os.environ.update(QUIET if address else QUIET | LOOPBACK)
        import ray

        if ray.is_initialized():
            return ray
        try:
            if address:
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
            else:
                ray.init(
                    "local",
                    num_cpus=self.settings.num_cpus,
                    _node_ip_address="127.0.0.1",
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            where = address or "on this machine"
            raise EhrError(f"no Ray cluster {where}: {str(error).splitlines()[0]}; see executor.address") from error
        if not address and not ray.util.get_node_ip_address().startswith("127."):
            ray.shutdown()
            raise EhrError(f"Ray was imported before it was told to stay on this machine; set {LOOPBACK} beforehand")
        return ray


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    return function(item)


def _result(ray: Any, item: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        cause.add_note(f"while working on {item}")
        raise cause from None
    except ray.exceptions.RayError as error:
        raise EhrError(
            f"a Ray worker failed at {item}: {str(error).strip().splitlines()[0]} "
            "If it ran out of memory, use fewer executor.num_cpus"
        ) from error
