"""The workbench from a notebook: whatever is installed, by name.

    import ehr

    result = ehr.run("source=meds", "source.path=data/meds", "labels=labels/readmission")
    model = ehr.load(result.path / "fitted/readmission/finetuned")
    model.predict("new/meds", "whom_and_when.csv")
    model.represent("new/meds", "whom_and_when.csv")

A function takes the settings that its command takes, as on the command line (``"train.max_steps=100"``) or as the
object that `settings` gives, and returns what was made, opened: `docs/api.md` has them all. Errors are `EhrError`s
of one line. Nothing is imported before it is used.
"""

from collections.abc import Callable
from typing import Any

from ehr_core.errors import EhrError

from ehr.reaching import reach, settings

FUNCTIONS: dict[str, tuple[str, str, str]] = {
    "tokenize": ("ehr-tokenize", "ehr_tokenize:tokenize", "tokenize"),
    "make": ("ehr-tokenize", "ehr_tokenize:make", "make"),
    "embed": ("ehr-embeddings", "ehr_embeddings:embed", "embed"),
    "label": ("ehr-eval", "ehr_eval:label", "label"),
    "fit": ("ehr-eval", "ehr_eval:fit", "fit"),
    "predict": ("ehr-eval", "ehr_eval:predict", "predict"),
    "apply": ("ehr-eval", "ehr_eval:apply", "apply"),
    "evaluate": ("ehr-eval", "ehr_eval:evaluate", "evaluate"),
    "report": ("ehr-eval", "ehr_eval:report", "report"),
    "benchmark": ("ehr-eval", "ehr_eval:benchmark", "benchmark"),
    "run": ("ehr-train", "ehr_train.runner.command:run", "train"),
    "represent": ("ehr-train", "ehr_train.runner.represent:represent", "represent"),
    "generate": ("ehr-train", "ehr_train.runner.generate:generate", "generate"),
}
"""Name to the distribution that has it, where it is, and the command whose settings it takes."""
__all__ = ["EhrError", "load", "settings", *FUNCTIONS]


def load(path: Any) -> Any:
    """A run folder or a fitted folder, ready to be applied: a `Model` with ``predict`` and ``represent``."""
    from ehr.model import Model

    return Model(path)


def _function(name: str) -> Callable[..., Any]:
    distribution, place, command = FUNCTIONS[name]

    def call(*given: Any) -> Any:
        function = reach(distribution, place)
        overrides = [part for part in given if isinstance(part, str)]
        if len(given) == 1 and not overrides:
            return function(given[0])
        if len(overrides) != len(given):
            raise TypeError(f"{name} takes either one settings object or overrides like 'seed=7'")
        return function(settings(command, *overrides))

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"`{place}`: settings of ``{command}``, or overrides of them as on the command line."
    return call


def __getattr__(name: str) -> Any:
    if name in FUNCTIONS:
        return _function(name)
    raise AttributeError(f"module 'ehr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
