"""What ehr-exmed-bert brings: source, tokenizer, model and objectives of ExMed-BERT. Nothing heavy is imported here."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ehr_core import MISSING, Component, hookimpl
from ehr_core.outcomes import BINARY
from ehr_models.bert_settings import BertConfig, ColumnConfig
from ehr_models.objectives.settings import MaskedConfig
from ehr_tokenize.grammars.visits_settings import VisitsConfig
from ehr_tokenize.sources.settings import TablesConfig


@dataclass
class ExMedBertConfig(VisitsConfig):
    """Codes with age, visit, entity, sex and region at each position, as in ExMed-BERT (Lentzen et al. 2023)."""

    name: str = "exmed_bert"
    grouping: str = "same_day"
    sep: bool = False
    cls: bool = False
    entity: bool = True
    static: str = "columns"


@dataclass
class PatientsJsonConfig(TablesConfig):
    """Patients in the JSON of ExMed-BERT, nested or flat, read as a stream and written as MEDS."""

    name: str = "patients_json"
    path: Path = MISSING
    """The JSON file: a list of patients, or an object whose ``patients`` is one."""


def exmed_columns() -> dict[str, ColumnConfig]:
    """Entity type, age in tenths of a year, sex and region, as the tokenizer writes them."""
    return {
        "entity": ColumnConfig(16),
        "age_days": ColumnConfig(1112, "age", 0.1),
        "sex": ColumnConfig(8),
        "region": ColumnConfig(64),
    }


@dataclass
class ExMedBertModelConfig(BertConfig):
    """ExMed-BERT: code, entity, age, sex and region at each position, which is the visit, as a fixed sine."""

    name: str = "exmed_bert"
    attention_dropout: float = 0.1
    positions: str = "sinusoidal"
    position_column: str = "visit"
    weight_init: str = "orthogonal"
    columns: dict[str, ColumnConfig] = field(default_factory=exmed_columns)


@dataclass
class MlmPlosConfig(MaskedConfig):
    """Hidden tokens, and whether the stay is prolonged (the label), learnt together."""

    name: str = "mlm_plos"
    exact: bool = True
    most: int = 20
    plos_weight: float = 1.0
    """Weight of the stay's loss beside that of hidden tokens."""
    negative_weight: float = 0.25
    """Weight of a sample with label 0 in the stay's loss."""
    positive_weight: float = 1.0
    """Weight of a sample with label 1."""


@dataclass
class EndpointConfig:
    """A binary endpoint, read off a sample's hidden states; trains the whole model."""

    name: str = "endpoint"
    head: str = "ffn"
    """``ffn``: the mean of the hidden states; ``lstm``, ``gru`` or ``rnn``: run over them in both directions."""
    rnn_layers: int = 2
    """Layers of ``lstm``, ``gru`` and ``rnn``."""
    final_blocks: int = 0
    """Blocks of dropout, linear layer and ReLU before the last linear layer."""
    dropout: float = 0.1
    """In training only."""
    positive_weight: float = 1.0
    """Weight of positive samples in the loss; negatives over positives balances classes."""


@hookimpl
def ehr_models() -> Iterator[Component]:
    yield Component(
        name="exmed_bert",
        target="ehr_models.bert:build",
        config=ExMedBertModelConfig,
        summary="ExMed-BERT: an encoder of codes, entities, ages, sex, region and visits",
    )


@hookimpl
def ehr_objectives() -> Iterator[Component]:
    yield Component(
        name="mlm_plos",
        target="ehr_exmed_bert.objectives:MlmPlos",
        config=MlmPlosConfig,
        summary="Hidden tokens and a prolonged stay, together; pretraining with labels",
        outcomes=(BINARY,),
    )
    yield Component(
        name="endpoint",
        target="ehr_exmed_bert.objectives:Endpoint",
        config=EndpointConfig,
        summary="A binary endpoint with a feed-forward, LSTM, GRU or RNN head",
        outcomes=(BINARY,),
    )


@hookimpl
def ehr_sources() -> Iterator[Component]:
    yield Component(
        name="patients_json",
        target="ehr_exmed_bert.patients:PatientsJson",
        config=PatientsJsonConfig,
        summary="Patients as JSON: diagnoses, drugs and procedures with dates",
    )


@hookimpl
def ehr_tokenizers() -> Iterator[Component]:
    yield Component(
        name="exmed_bert",
        target="ehr_exmed_bert.tokenizer:ExMedBert",
        config=ExMedBertConfig,
        summary="Codes with age, visit, entity, sex and region at each position",
    )
