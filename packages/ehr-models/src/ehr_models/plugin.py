"""What ehr-models brings: networks, objectives and adapters. Nothing heavy is imported here."""

from collections.abc import Iterator

from ehr_core import Component, hookimpl
from ehr_core.outcomes import BINARY, MULTICLASS, MULTILABEL, REGRESSION, SURVIVAL

from ehr_models.adapter_settings import AdapterConfig
from ehr_models.bert_settings import BertConfig
from ehr_models.hf_settings import HFConfig
from ehr_models.objectives.settings import (
    ClassificationConfig,
    MaskedConfig,
    MulticlassConfig,
    MultilabelConfig,
    NextTokenConfig,
    NextVisitConfig,
    RegressionConfig,
    SurvivalConfig,
    TimeToEventConfig,
)
from ehr_models.settings import GPTConfig


@hookimpl
def ehr_models() -> Iterator[Component]:
    yield Component(
        name="gpt",
        target="ehr_models.gpt:build",
        config=GPTConfig,
        summary="GPT-2's decoder without biases, exact on packed rows",
    )
    yield Component(
        name="bert",
        target="ehr_models.bert:build",
        config=BertConfig,
        summary="BERT's encoder with columns such as age and visit, exact on packed rows",
    )
    yield Component(
        name="hf",
        target="ehr_models.hf:build",
        config=HFConfig,
        summary="Any causal or masked architecture of transformers by name, offline, exact on packed rows",
    )


@hookimpl
def ehr_objectives() -> Iterator[Component]:
    yield Component(
        name="next_token",
        target="ehr_models.objectives.next_token:NextToken",
        config=NextTokenConfig,
        summary="Predict each next token; cross-entropy",
        needs=("causal",),
    )
    yield Component(
        name="masked",
        target="ehr_models.objectives.masked:MaskedTokens",
        config=MaskedConfig,
        summary="Predict hidden tokens from all others of the window; cross-entropy",
    )
    yield Component(
        name="next_visit",
        target="ehr_models.objectives.next_visit:NextVisit",
        config=NextVisitConfig,
        summary="Predict the codes of the next visit from those before it; BEHRT's task",
    )
    yield Component(
        name="classification",
        target="ehr_models.objectives.classification:Classification",
        config=ClassificationConfig,
        summary="Predict a binary label at the prediction time; fine-tunes the whole model",
        outcomes=(BINARY,),
    )
    yield Component(
        name="multiclass",
        target="ehr_models.objectives.classification:Multiclass",
        config=MulticlassConfig,
        summary="Predict one of several classes at the prediction time",
        outcomes=(MULTICLASS,),
    )
    yield Component(
        name="multilabel",
        target="ehr_models.objectives.classification:Multilabel",
        config=MultilabelConfig,
        summary="Predict several binary labels at the prediction time",
        outcomes=(MULTILABEL,),
    )
    yield Component(
        name="regression",
        target="ehr_models.objectives.classification:Regression",
        config=RegressionConfig,
        summary="Predict a number at the prediction time",
        outcomes=(REGRESSION,),
    )
    yield Component(
        name="survival",
        target="ehr_models.objectives.survival:Survival",
        config=SurvivalConfig,
        summary="Predict when an event comes, by discrete hazards; exact under censoring",
        outcomes=(SURVIVAL, BINARY),
    )
    yield Component(
        name="time_to_event",
        target="ehr_models.objectives.survival:TimeToEvent",
        config=TimeToEventConfig,
        summary="Predict when an event comes, by a piecewise constant hazard; MOTOR's loss",
        outcomes=(SURVIVAL, BINARY),
    )


@hookimpl
def ehr_adapters() -> Iterator[Component]:
    yield Component(
        name="lora",
        target="ehr_models.adapters:LowRank",
        config=AdapterConfig,
        summary="Low-rank adapters: LoRA, and as presets DoRA and rsLoRA",
    )
