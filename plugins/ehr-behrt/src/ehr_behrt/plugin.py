"""What ehr-behrt brings: the tokenizer behrt. Nothing heavy is imported here."""

from collections.abc import Iterator
from dataclasses import dataclass

from ehr_core import Component, hookimpl
from ehr_tokenize.visits_settings import VisitsConfig


@dataclass
class BehrtConfig(VisitsConfig):
    """Codes with age, visit and segment, [CLS] first and [SEP] between visits, as in BEHRT (Li et al. 2020)."""

    name: str = "behrt"


@hookimpl
def ehr_tokenizers() -> Iterator[Component]:
    yield Component(
        name="behrt",
        target="ehr_behrt.tokenizer:Behrt",
        config=BehrtConfig,
        summary="Visits of codes with age, visit and segment; [CLS] and [SEP]",
    )
