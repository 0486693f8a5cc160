"""What ehr-behrt brings: the tokenizer and the model behrt. Nothing heavy is imported here."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from ehr_core import Component, hookimpl
from ehr_models.bert_settings import BertConfig, ColumnConfig
from ehr_tokenize.grammars.visits_settings import VisitsConfig


@dataclass
class BehrtConfig(VisitsConfig):
    """Codes with age, visit and segment, [CLS] first and [SEP] between visits, as in BEHRT (Li et al. 2020)."""

    name: str = "behrt"


def behrt_columns() -> dict[str, ColumnConfig]:
    """Ages in bins of five years up to 100, and one for unknown; visits up to the 511th; segments only if asked for."""
    return {
        "age_days": ColumnConfig(22, "age", 5.0),
        "visit": ColumnConfig(512),
        "segment": ColumnConfig(0),
    }


@dataclass
class BehrtModelConfig(BertConfig):
    """BEHRT: codes, ages and visits in one sum, pre-LN blocks, an output layer of its own."""

    name: str = "behrt"
    num_layers: int = 2
    width: int = 128
    mlp_width: int = 512
    embedding_width: int = 64
    norm: str = "pre"
    epsilon: float = 1e-5
    tied: bool = False
    columns: dict[str, ColumnConfig] = field(default_factory=behrt_columns)


@hookimpl
def ehr_models() -> Iterator[Component]:
    yield Component(
        name="behrt",
        target="ehr_models.bert:build",
        config=BehrtModelConfig,
        summary="BEHRT: an encoder of codes, ages and visits",
    )


@hookimpl
def ehr_tokenizers() -> Iterator[Component]:
    yield Component(
        name="behrt",
        target="ehr_behrt.tokenizer:Behrt",
        config=BehrtConfig,
        summary="Visits of codes with age, visit and segment; [CLS] and [SEP]",
    )
