"""Every hook that a plugin may implement. This module is the public extension surface of the project.

A plugin is a module named in the ``ehr`` entry-point group of its distribution. Each hook takes no arguments and
yields Components. The module itself imports nothing heavy: no torch, transformers, polars or scikit-learn.
Hooks are listed in the order in which the data flows; ``ehr_core.protocols`` says what each target must do.
"""

from collections.abc import Iterable

import pluggy

from ehr_core.component import Component

hookspec = pluggy.HookspecMarker("ehr")
hookimpl = pluggy.HookimplMarker("ehr")

Components = Iterable[Component]


# -- records -> tokens


@hookspec
def ehr_sources() -> Components:
    """Places that records come from; each provides a MEDS dataset in a folder."""


@hookspec
def ehr_tokenizers() -> Components:
    """Ways to turn a subject's events into token columns, fitted on the train split."""


@hookspec
def ehr_embeddings() -> Components:
    """Sources of one vector per code, to start or freeze a model's input table."""


# -- tokens -> run folder


@hookspec
def ehr_models() -> Components:
    """Networks that map a batch of tokens to hidden states and logits."""


@hookspec
def ehr_objectives() -> Components:
    """Losses, as sum and count, with the head that they need: what a model is asked to predict."""


@hookspec
def ehr_strategies() -> Components:
    """Ways to place a model and its gradients on devices."""


@hookspec
def ehr_adapters() -> Components:
    """Ways to train a small part of any model and freeze the rest."""


@hookspec
def ehr_trackers() -> Components:
    """Destinations for metrics, settings and artifacts while a run is going."""


# -- run folder and labels -> report


@hookspec
def ehr_tasks() -> Components:
    """Clinical questions: each turns MEDS events into MEDS labels."""


@hookspec
def ehr_baselines() -> Components:
    """Estimators fitted on the shared count-and-value features."""


@hookspec
def ehr_predictors() -> Components:
    """Ways to turn a run and labels into predictions; fitted once, applied to any data."""


@hookspec
def ehr_metrics() -> Components:
    """Scores computed from labels and predictions."""


# -- around the pipeline


@hookspec
def ehr_executors() -> Components:
    """Ways to run independent pieces of work, in order: in this process, in a pool, on a cluster."""


@hookspec
def ehr_commands() -> Components:
    """Subcommands: each takes one composed settings object."""
