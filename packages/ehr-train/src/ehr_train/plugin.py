"""What ehr-train contributes: strategies, trackers and predictors."""

from collections.abc import Iterator

from ehr_core import Component, hookimpl
from ehr_core.outcomes import BINARY, KINDS

from ehr_train.runner.settings import GenerateConfig, RepresentConfig, RunnerConfig
from ehr_train.settings import (
    DdpConfig,
    DirectConfig,
    FinetunedConfig,
    Fsdp2Config,
    JsonlConfig,
    SingleConfig,
    TensorBoardConfig,
)


@hookimpl
def ehr_strategies() -> Iterator[Component]:
    yield Component(
        name="single",
        target="ehr_train.strategies.local:Single",
        config=SingleConfig,
        summary="One process, one device",
    )
    yield Component(
        name="ddp",
        target="ehr_train.strategies.local:Ddp",
        config=DdpConfig,
        summary="A copy of the model in every process",
    )
    yield Component(
        name="fsdp2",
        target="ehr_train.strategies.fsdp:Fsdp2",
        config=Fsdp2Config,
        summary="The model divided among all processes",
    )


@hookimpl
def ehr_trackers() -> Iterator[Component]:
    yield Component(
        name="jsonl", target="ehr_train.trackers:Jsonl", config=JsonlConfig, summary="A line of JSON for each entry"
    )
    yield Component(
        name="tensorboard",
        target="ehr_train.trackers:TensorBoard",
        config=TensorBoardConfig,
        summary="TensorBoard event files in the run folder",
    )


@hookimpl
def ehr_predictors() -> Iterator[Component]:
    yield Component(
        name="direct",
        target="ehr_train.predictors.direct:Direct",
        config=DirectConfig,
        summary="Next-token probability of the outcome's codes",
        outcomes=(BINARY,),
    )
    yield Component(
        name="finetuned",
        target="ehr_train.predictors.finetuned:Finetuned",
        config=FinetunedConfig,
        summary="The run's model trained further on the task's labels",
        outcomes=KINDS,
    )


@hookimpl
def ehr_commands() -> Iterator[Component]:
    yield Component(
        name="train",
        target="ehr_train.runner.command:main",
        config=RunnerConfig,
        summary="Any MEDS dataset to a trained and evaluated model; with no arguments, the demo on a synthetic cohort",
    )
    yield Component(
        name="generate",
        target="ehr_train.runner.generate:main",
        config=GenerateConfig,
        summary="Futures of patients, drawn from a trained run",
    )
    yield Component(
        name="represent",
        target="ehr_train.runner.represent:main",
        config=RepresentConfig,
        summary="Hidden states of patients, from a trained run",
    )
