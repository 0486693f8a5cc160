"""Where Hydra finds settings: dataclasses of components and commands, and YAML presets beside plugin modules.

Each is read when a command line asks for it, so that starting takes no longer with more plugins installed.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from ehr_core import plugins
from ehr_core.plugins import KINDS

SCHEME = "ehr"


def config_name(command: str) -> str:
    """Name of a command's primary config."""
    return f"ehr_{command.replace('-', '_')}"


def conf_folders() -> list[Path]:
    """Folders named ``conf`` beside the plugin modules that are loaded."""
    folders = []
    for plugin in plugins.registry().plugins:
        spec = importlib.util.find_spec(plugin.module) if plugin.error is None else None
        if spec and spec.origin and (folder := Path(spec.origin).parent / "conf").is_dir():
            folders.append(folder)
    return sorted(set(folders))


def places() -> dict[str, tuple[Any, str | None]]:
    """Path of each config, as Hydra writes it, to its dataclass and the package that it fills."""
    found: dict[str, tuple[Any, str | None]] = {}
    for kind, place in KINDS.items():
        for name, component in plugins.registry().components[kind].items():
            if component.config is None:
                continue
            if kind == "command":
                found[config_name(name)] = component.config, None
            else:
                package = f"{place.group}.{name}" if place.many else place.group
                found[f"{place.group}/{name}"] = component.config, package
    return found


class ComponentSource(ConfigSource):
    """The settings of components and commands: ``ehr://``."""

    def __init__(self, provider: str, path: str) -> None:
        super().__init__(provider, path)
        self.places = places()

    @staticmethod
    def scheme() -> str:
        """The beginning of its address."""
        return SCHEME

    def available(self) -> bool:
        """It is there as soon as there are plugins."""
        return True

    def load_config(self, config_path: str) -> ConfigResult:
        """One dataclass with its defaults."""
        node, package = self.places[config_path.removesuffix(".yaml")]
        return ConfigResult(self.provider, self.full_path(), OmegaConf.structured(node), {"package": package})

    def is_group(self, config_path: str) -> bool:
        """Whether there are configs below."""
        below = f"{config_path.strip('/')}/".lstrip("/")
        return any(path.startswith(below) for path in self.places)

    def is_config(self, config_path: str) -> bool:
        """Whether this is a config."""
        return config_path.removesuffix(".yaml").strip("/") in self.places

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Names of the groups and configs below."""
        below = f"{config_path.strip('/')}/".lstrip("/")
        rests = [path.removeprefix(below) for path in self.places if path.startswith(below)]
        groups = {rest.partition("/")[0] for rest in rests if "/" in rest}
        configs = {rest for rest in rests if "/" not in rest}
        if results_filter is None:
            return sorted(groups | configs)
        return sorted(groups if results_filter == ObjectType.GROUP else configs)


class EhrSearchPath(SearchPathPlugin):
    """Puts the settings of components, and the ``conf/`` folder of every plugin package, on Hydra's search path."""

    def manipulate_search_path(self, search_path: Any) -> None:
        """Called by Hydra for every composition."""
        search_path.append(provider="ehr", path=f"{SCHEME}://")
        for folder in conf_folders():
            search_path.append(provider="ehr", path=f"file://{folder}")


@functools.cache
def register() -> None:
    """Tell Hydra of both, once a process."""
    Plugins.instance().register(ComponentSource)
    Plugins.instance().register(EhrSearchPath)
