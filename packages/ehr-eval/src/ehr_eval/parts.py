"""Which baselines, predictors and metrics take part: those that were named, or by default those that speak the kind."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ehr_core import plugins
from ehr_core.errors import ConfigError

DEFAULTS = ("logistic", "linear", "cox")
"""Baselines for when none is named: the first that speaks the kind of outcome."""
WORDS = {"baseline": "predictors", "predictor": "predictors", "metric": "metric"}


def kind_of(part: Any) -> str:
    """``baseline`` or ``predictor``, by the component's name."""
    return "baseline" if part.name in plugins.registry().components["baseline"] else "predictor"


def needs_run(part: Any) -> bool:
    """Whether a component works from a run folder."""
    return kind_of(part) == "predictor" and bool(plugins.build("predictor", part).needs_run)


def outcomes_of(kind: str, part: Any) -> tuple[str, ...]:
    """Kinds of outcome that a component speaks."""
    return plugins.registry().get(kind, part.name).outcomes


def with_seed(part: Any, seed: int) -> Any:
    """Settings whose own ``seed`` is None get the command's."""
    fields = {field.name for field in dataclasses.fields(part)}
    return dataclasses.replace(part, seed=seed) if "seed" in fields and part.seed is None else part


def choose_predictors(given: Mapping[str, Any], outcomes: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Task to its predictors by name, of those given; ``outcomes`` has the kind of outcome of each task.

    Each is built once, so that a setting that cannot work shows before any work. Raises ConfigError.
    """
    for part in given.values():
        plugins.build(kind_of(part), part)
    if given:
        return _named({name: (kind_of(part), part) for name, part in given.items()}, outcomes)
    chosen: dict[str, dict[str, Any]] = {}
    for task, outcome in outcomes.items():
        speak = [c for n in DEFAULTS if outcome in (c := plugins.registry().get("baseline", n)).outcomes]
        assert speak[0].config is not None, "our own have settings"
        chosen[task] = {speak[0].name: speak[0].config()}
    return chosen


def choose_metrics(given: Mapping[str, Any], outcomes: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Task to its metrics by name, ready to call; see `choose_predictors`."""
    if given:
        named = _named({name: ("metric", part) for name, part in given.items()}, outcomes)
    else:
        found = plugins.registry().components["metric"].values()
        named = {
            task: {c.name: c.config() for c in found if c.config is not None and outcome in c.outcomes}
            for task, outcome in outcomes.items()
        }
    return {
        task: {name: plugins.build("metric", part) for name, part in parts.items()} for task, parts in named.items()
    }


def _named(given: Mapping[str, tuple[str, Any]], outcomes: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Of the components that were named, those that speak each task's kind. Raises ConfigError for one left over."""
    speaks = {name: outcomes_of(kind, part) for name, (kind, part) in given.items()}
    kinds = list(dict.fromkeys(outcomes.values()))
    for name, (kind, _) in given.items():
        if not set(speaks[name]) & set(kinds):
            raise ConfigError(
                f"{kind} {name!r} speaks {' and '.join(speaks[name]) or 'no kind of outcome'}, and the labels are "
                f"{' and '.join(kinds)}; those that speak it: {', '.join(_speaking(kind, kinds)) or 'none'}"
            )
    chosen = {
        task: {name: part for name, (_, part) in given.items() if outcome in speaks[name]}
        for task, outcome in outcomes.items()
    }
    for task, parts in chosen.items():
        if not parts:
            kind = next(iter(given.values()))[0]
            raise ConfigError(
                f"none of {WORDS[kind]}={','.join(given)} speaks {outcomes[task]}, which is what {task!r} asks; those "
                f"that do: {', '.join(_speaking(kind, [outcomes[task]])) or 'none'}"
            )
    return chosen


def _speaking(kind: str, outcomes: list[str]) -> list[str]:
    kinds = ("baseline", "predictor") if kind != "metric" else ("metric",)
    found = [c for k in kinds for c in plugins.registry().components[k].values()]
    return sorted(c.name for c in found if set(c.outcomes) & set(outcomes))
