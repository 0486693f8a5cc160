"""Settings by the name of a command, and functions by where they are: what is installed is found when it is used."""

import importlib
from typing import Any

from ehr_core.errors import PluginError


def settings(command: str, *overrides: str) -> Any:
    """The settings of a command as its dataclass: ``settings("train", "seed=7")``, overrides as on the command line.

    Raises ConfigError for what does not exist, with the names that do.
    """
    from ehr_core import config

    return config.to_settings(config.compose(command, overrides))


def reach(distribution: str, place: str) -> Any:
    """Something of a package by its ``"module:name"``. Raises PluginError that says what to install."""
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise PluginError(f"this needs {distribution}, which is not installed: pip install {distribution}") from None
