"""What ehr-models brings: the model gpt and the objectives next_token and classification."""

from collections.abc import Iterator

from ehr_core import Component, hookimpl

from ehr_models.settings import ClassificationConfig, GPTConfig, NextTokenConfig


@hookimpl
def ehr_models() -> Iterator[Component]:
    yield Component(
        name="gpt",
        target="ehr_models.gpt:build",
        config=GPTConfig,
        summary="GPT-2's decoder without biases, exact on packed rows",
    )


@hookimpl
def ehr_objectives() -> Iterator[Component]:
    yield Component(
        name="next_token",
        target="ehr_models.objectives.next_token:NextToken",
        config=NextTokenConfig,
        summary="Predict each next token; cross-entropy",
    )
    yield Component(
        name="classification",
        target="ehr_models.objectives.classification:Classification",
        config=ClassificationConfig,
        summary="Predict a binary label at the prediction time; fine-tunes the whole model",
    )
