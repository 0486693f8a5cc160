"""Component: how a plugin announces one interchangeable part without importing it."""

import importlib
from dataclasses import dataclass
from typing import Any

from ehr_core.errors import PluginError

MISSING: Any = "???"
"""Default of a setting that has to be given; OmegaConf's spelling, without the import."""


@dataclass(frozen=True, kw_only=True)
class Component:
    """One named part: what a settings file says, where the code is, and which settings it takes."""

    name: str
    """What settings and command lines say, for example ``gpt``."""
    target: str
    """``"package.module:attribute"``, imported on first use; ``protocols`` says how it is called."""
    config: type | None = None
    """Dataclass of settings, with a field ``name`` whose default is the component's name."""
    summary: str = ""
    """One line for ``ehr plugins`` and ``--help``."""
    outcomes: tuple[str, ...] = ()
    """Kinds of outcome that it speaks (`ehr_core.outcomes.KINDS`): a task the one that it asks, an objective those that
    it learns from (none: it needs no labels), a baseline, predictor or metric those that it can answer or score."""
    needs: tuple[str, ...] = ()
    """Of an objective: what a model has to provide (`protocols.Model.provides`), such as ``causal``."""

    def load(self) -> Any:
        """Import and return the target. Raises PluginError that names the target when the import fails."""
        module_name, _, attribute = self.target.partition(":")
        try:
            found: Any = importlib.import_module(module_name)
            for part in attribute.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise PluginError(f"{self.name!r} cannot be loaded from {self.target!r}: {error}") from error
        return found
