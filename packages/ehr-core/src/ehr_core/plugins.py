"""The plugin manager: finds plugins, refuses what pluggy would let pass in silence, and answers for names.

pluggy accepts a misspelt hook, keeps one of two distributions that claim the same entry-point name, and lets one
broken import take the program down. Here each of these is an error that names the distribution and the remedy, and a
plugin that fails to import counts only when it is the one that was asked for.
"""

import difflib
import functools
import importlib.metadata
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pluggy

from ehr_core import hookspecs
from ehr_core.component import Component
from ehr_core.errors import PluginError

GROUP = "ehr"


@dataclass(frozen=True)
class Kind:
    """One hook seen from the settings: which group its components' settings are in, and whether several may be on."""

    hook: str
    group: str
    many: bool = False


KINDS: dict[str, Kind] = {
    "source": Kind("ehr_sources", "source"),
    "tokenizer": Kind("ehr_tokenizers", "tokenizer"),
    "embedding": Kind("ehr_embeddings", "embedding"),
    "model": Kind("ehr_models", "model"),
    "objective": Kind("ehr_objectives", "objective"),
    "strategy": Kind("ehr_strategies", "strategy"),
    "adapter": Kind("ehr_adapters", "adapter"),
    "tracker": Kind("ehr_trackers", "tracker", many=True),
    "task": Kind("ehr_tasks", "task", many=True),
    "baseline": Kind("ehr_baselines", "predictors", many=True),
    "predictor": Kind("ehr_predictors", "predictors", many=True),
    "metric": Kind("ehr_metrics", "metric", many=True),
    "executor": Kind("ehr_executors", "executor"),
    "command": Kind("ehr_commands", ""),
}
"""Kind (singular, as in error messages) to hook and settings group. Baselines and predictors share one group."""


@dataclass(frozen=True)
class Plugin:
    """One entry point of one distribution, and what became of it."""

    name: str
    distribution: str
    version: str
    module: str
    error: str | None = None


@dataclass
class Registry:
    """What is installed: plugins, and components by kind and name. Build one with `discover`."""

    plugins: list[Plugin] = field(default_factory=list)
    components: dict[str, dict[str, Component]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    origin: dict[tuple[str, str], Plugin] = field(default_factory=dict)

    def get(self, kind: str, name: str) -> Component:
        """The component of this kind and name. Raises PluginError with the names there are."""
        found = self.components[kind].get(name)
        if found is not None:
            return found
        names = sorted(self.components[kind])
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        broken = "".join(f" Plugin {p.name!r} did not load: {p.error}." for p in self.plugins if p.error)
        raise PluginError(f"no {kind} is named {name!r}.{hint} Installed: {', '.join(names) or 'none'}.{broken}")

    def load(self, kind: str, name: str) -> Any:
        """Import and return the target of a component."""
        return self.get(kind, name).load()

    def version(self, kind: str, name: str) -> str:
        """``distribution==version`` that provides a component, for manifests and cache keys."""
        self.get(kind, name)
        plugin = self.origin[kind, name]
        return f"{plugin.distribution}=={plugin.version}"

    def add(self, plugin: Plugin, kind: str, components: Iterable[Component]) -> None:
        """Register components of a plugin. Raises PluginError when a name is taken."""
        shared = [other for other in KINDS if KINDS[other].group == KINDS[kind].group]
        for component in components:
            if not isinstance(component, Component):
                raise PluginError(
                    f"plugin {plugin.name!r} from {plugin.distribution}: hook {KINDS[kind].hook} yielded "
                    f"{type(component).__name__}; it must yield ehr_core.Component"
                )
            for other in shared:
                if component.name in self.components[other]:
                    holder = self.origin[other, component.name]
                    raise PluginError(
                        f"two plugins provide {kind} {component.name!r}: {holder.distribution} {holder.version} and "
                        f"{plugin.distribution} {plugin.version}. Uninstall one, or choose with EHR_PLUGINS."
                    )
            self.components[kind][component.name] = component
            self.origin[kind, component.name] = plugin


def _entry_points() -> list[importlib.metadata.EntryPoint]:
    found = sorted(importlib.metadata.entry_points(group=GROUP), key=lambda e: (e.name, e.value))
    # An editable install that was made twice can list the same entry point of one distribution twice.
    unique = {(e.name, e.value, e.dist.name if e.dist else ""): e for e in found}
    return list(unique.values())


def _refuse_twins(entry_points: list[importlib.metadata.EntryPoint]) -> None:
    seen: dict[str, str] = {}
    for entry in entry_points:
        owner = entry.dist.name if entry.dist else "?"
        if entry.name in seen:
            raise PluginError(
                f"two distributions name a plugin {entry.name!r}: {seen[entry.name]} and {owner}. "
                "One would be lost in silence; uninstall one of them."
            )
        seen[entry.name] = owner


def _chosen(entry_points: list[importlib.metadata.EntryPoint]) -> list[importlib.metadata.EntryPoint]:
    wanted = os.environ.get("EHR_PLUGINS")
    if wanted is None:
        return entry_points
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    missing = sorted(set(names) - {entry.name for entry in entry_points})
    if missing:
        raise PluginError(
            f"EHR_PLUGINS names {', '.join(missing)}, not installed. "
            f"Installed: {', '.join(entry.name for entry in entry_points)}."
        )
    return [entry for entry in entry_points if entry.name in names]


def check_hooks(manager: pluggy.PluginManager, module: object, name: str) -> None:
    """Refuse names that look like hooks and are none. Raises PluginError with the nearest hook."""
    hooks = sorted(kind.hook for kind in KINDS.values())
    marked = [attribute for attribute in vars(module) if manager.parse_hookimpl_opts(module, attribute) is not None]
    for attribute in marked:
        if attribute not in hooks:
            near = difflib.get_close_matches(attribute, hooks, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise PluginError(f"unknown hook {attribute!r} in plugin {name!r}.{hint} Hooks: {', '.join(hooks)}.")


def discover(modules: Mapping[str, object] | None = None) -> Registry:
    """Load every plugin of the ``ehr`` group (or the given name -> module pairs, in tests) and collect components.

    A plugin that cannot be imported is recorded with its error and left out. Conflicts and misspelt hooks raise
    PluginError, because going on would use something other than what was installed.
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    registry = Registry()
    for plugin, module in _given(modules) if modules is not None else _installed(registry):
        check_hooks(manager, module, plugin.name)
        try:
            manager.register(module, plugin.name)
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginError(f"plugin {plugin.name!r} from {plugin.distribution} was refused: {error}") from error
        registry.plugins.append(plugin)
        for kind, place in KINDS.items():
            for implementation in getattr(manager.hook, place.hook).get_hookimpls():
                if implementation.plugin is module:
                    registry.add(plugin, kind, implementation.function() or ())
    registry.plugins.sort(key=lambda plugin: plugin.name)
    return registry


def _given(modules: Mapping[str, object]) -> Iterable[tuple[Plugin, object]]:
    for name, module in modules.items():
        yield Plugin(name, name, "0", getattr(module, "__name__", name)), module


def _installed(registry: Registry) -> Iterable[tuple[Plugin, object]]:
    entry_points = _entry_points()
    _refuse_twins(entry_points)
    for entry in _chosen(entry_points):
        distribution = entry.dist.name if entry.dist else "?"
        version = entry.dist.version if entry.dist else "?"
        try:
            module = entry.load()
        except Exception as error:  # a stranger's module may fail in any way; it must not take us down
            message = f"{type(error).__name__}: {error}".splitlines()[0]
            registry.plugins.append(Plugin(entry.name, distribution, version, entry.module, message))
            continue
        yield Plugin(entry.name, distribution, version, entry.module), module


@functools.cache
def registry() -> Registry:
    """The registry of this process, discovered once."""
    return discover()


def default_choices(choices: Mapping[str, str | list[str] | None]) -> list[Any]:
    """Entries of a command's ``defaults``: each group with its usual choice, as far as that is installed.

    A group is there whatever is installed, so that a stranger's component can be chosen where ours is not: nothing is
    chosen then (None), and a command that needs one says so.
    """
    installed = {(place.group, name) for kind, place in KINDS.items() for name in registry().components[kind]}
    found: list[Any] = []
    for group, choice in choices.items():
        if isinstance(choice, list):
            found.append({group: [name for name in choice if (group, name) in installed]})
        else:
            found.append({group: choice if (group, choice) in installed else None})
    return found


def build(kind: str, settings: Any, *arguments: Any, **runtime: Any) -> Any:
    """Make the component that ``settings.name`` names: ``target(settings, *arguments, **runtime)``."""
    return registry().load(kind, settings.name)(settings, *arguments, **runtime)
