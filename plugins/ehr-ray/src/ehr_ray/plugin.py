"""The executor and its settings. Ray itself is imported when work begins."""

from collections.abc import Iterator
from dataclasses import dataclass

from ehr_core import Component, hookimpl


@dataclass
class RayConfig:
    """Tasks of a Ray cluster: one on this machine for the time of the work, or one that is running."""

    name: str = "ray"
    num_cpus: int = 2
    """Tasks at a time. With `address` it is how many are under way at once, wherever the cluster runs them."""
    address: str | None = None
    """A running cluster, for example ``auto`` or ``10.0.0.1:6379``, whose machines see the same folders by the same
    paths. None: start one here that nothing outside this machine can reach, and stop it at the end."""


@hookimpl
def ehr_executors() -> Iterator[Component]:
    yield Component(
        name="ray", target="ehr_ray.executor:Ray", config=RayConfig, summary="Tasks of a Ray cluster, here or elsewhere"
    )
