"""Which checks a component of each kind must pass. `pytest_plugin` runs them."""

import dataclasses
import importlib
import subprocess
import sys
import typing
from pathlib import Path

from omegaconf import OmegaConf

from ehr_core.component import Component
from ehr_core.outcomes import KINDS as OUTCOMES
from ehr_core.plugins import registry
from ehr_core.testing.base import Check

HEAVY = ("torch", "transformers", "polars", "sklearn", "xgboost", "mlflow", "scipy", "pandas", "matplotlib")
PATHS = ("path", "file", "folder")
"""Names, or ends of names, of settings that name a file."""
MODULES = {
    "source": "record_checks",
    "tokenizer": "encoding_checks",
    "embedding": "record_checks",
    "model": "torch_checks",
    "objective": "torch_checks",
    "adapter": "torch_checks",
    "strategy": "strategy_checks",
    "tracker": "work_checks",
    "task": "task_checks",
    "baseline": "score_checks",
    "predictor": "score_checks",
    "metric": "score_checks",
    "executor": "work_checks",
    "command": "work_checks",
}
"""Kind to the module of this package that has its checks, in ``CHECKS[kind]``; some need torch or polars."""


def check_import_is_light(kind: str, component: Component, folder: Path) -> None:
    """Importing the plugin's module loads none of the heavy libraries."""
    module = registry().origin[kind, component.name].module
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = done.stdout.strip()
    assert heavy == "[]", f"importing {module} imported {heavy}; import that behind the target"


def check_target_loads(kind: str, component: Component, folder: Path) -> None:
    """The target can be imported, and the summary says something."""
    assert callable(component.load()), f"{component.target} is not callable"
    assert component.summary.strip(), "a component needs a summary of one line"
    assert "\n" not in component.summary, "the summary is one line"


def check_settings(kind: str, component: Component, folder: Path) -> None:
    """Settings build with no arguments, carry the component's name, are plain data, and type files as paths."""
    if component.config is None:
        return
    assert dataclasses.is_dataclass(component.config), "settings are a dataclass"
    container = OmegaConf.structured(component.config)
    if kind != "command":
        assert container.get("name") == component.name, f"settings need a field name: str = {component.name!r}"
    assert component.config.__doc__, "the settings class needs a docstring"
    for name, hint in typing.get_type_hints(component.config).items():
        texts = hint is str or str in typing.get_args(hint)
        assert not (name.endswith(PATHS) and texts), f"the setting {name} names a file: type it as Path, not as text"


def check_outcomes(kind: str, component: Component, folder: Path) -> None:
    """Kinds of outcome are those that there are; whoever answers or scores speaks at least one."""
    wrong = [name for name in component.outcomes if name not in OUTCOMES]
    assert not wrong, f"outcomes has {wrong[0]!r}; allowed: {', '.join(OUTCOMES)}"
    if kind in ("task", "baseline", "predictor", "metric"):
        assert component.outcomes, f"a {kind} says which kinds of outcome it speaks: Component(outcomes=(...))"
    if kind == "task":
        assert len(component.outcomes) == 1, "a task asks one kind of outcome"


GENERAL: list[Check] = [check_import_is_light, check_target_loads, check_settings, check_outcomes]


def checks_of(kind: str) -> list[Check]:
    """The checks of a kind, the general ones first."""
    module = importlib.import_module(f"{__package__}.{MODULES[kind]}")
    return GENERAL + list(module.CHECKS[kind])
