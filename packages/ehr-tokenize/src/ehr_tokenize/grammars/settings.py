"""Settings that all grammars share. Import-light, so that a plugin's module may subclass them."""

from dataclasses import dataclass, field

from ehr_tokenize.prepare.settings import PrepareConfig


def outcome_codes() -> list[str]:
    """Death, admissions and discharges: what outcomes are made of."""
    stays = ["HOSPITAL_ADMISSION", "HOSPITAL_DISCHARGE", "ICU_ADMISSION", "ICU_DISCHARGE", "ED_REGISTRATION", "ED_OUT"]
    return ["MEDS_DEATH", *stays]


@dataclass
class GrammarConfig:
    """What every grammar can be told."""

    name: str = "grammar"
    min_count: int = 5
    """A code with fewer rows than this in train becomes [UNK] (a static one: its slot's unknown token)."""
    keep_codes: list[str] = field(default_factory=outcome_codes)
    """Codes that equal one of these, or start with one and ``//``, get a token however rare: outcomes are asked for."""
    value: bool = False
    """Whether the token store has a column ``value``: the number of a code token, NaN where there is none."""
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    """What happens to events first: dates, order, rules; see `ehr_tokenize.prepare`."""
