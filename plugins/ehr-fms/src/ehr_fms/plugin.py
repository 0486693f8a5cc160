"""The tokenizer ``fms`` and its settings. Import-light: the code behind the target loads on first use."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ehr_core import Component, hookimpl
from ehr_tokenize.grammars.settings import GrammarConfig


def _prefix() -> list[Any]:
    return [
        {"prefix": "RACE", "code": "RACE//"},
        {"prefix": "ETHN", "code": "ETHNICITY//"},
        {"prefix": "SEX", "code": "(?:GENDER|SEX)//"},
        {"prefix": "AGE", "value": "age", "numeric": True},
        {"prefix": "ADMN", "code": "HOSPITAL_ADMISSION(?://|$)", "when": "admission"},
    ]


@dataclass
class FmsConfig(GrammarConfig):
    """Timelines of hospitalizations from tables in YAML, as in fms-ehrs (Burkhart et al. 2025).

    An entry of ``prefix``, ``events`` or ``suffix`` has the keys ``prefix`` (text before ``_`` in its tokens), ``code``
    (a regular expression at the start of the MEDS code; what it leaves of the code, or its groups, is the rest of the
    token), ``filter`` (an expression that must be true), ``value`` (an expression for the number), ``numeric`` (whether
    the number becomes a bin) and, in ``prefix``, ``when`` (``known``: the last row up to the admission; ``admission``:
    of its instant only). Expressions know code, numeric_value, hours (since the admission), age (in years) and
    ``columns``.
    """

    name: str = "fms"
    admission_codes: list[str] = field(default_factory=lambda: ["HOSPITAL_ADMISSION"])
    """Codes that equal one of these, or start with one and ``//``, begin a hospitalization."""
    discharge_codes: list[str] = field(default_factory=lambda: ["HOSPITAL_DISCHARGE"])
    """Codes of this kind end it."""
    stay_column: str | None = None
    """Column that names the hospitalization of a row, such as hadm_id, in place of ``admission_codes``. Each begins
    with its first row and ends at its own discharge, and they may overlap. Rows without a name are in none."""
    tables: Path | None = None
    """YAML file with ``prefix``, ``events`` and ``suffix``, in place of those below."""
    prefix: list[Any] = field(default_factory=_prefix)
    """One token each after TL_START."""
    events: list[Any] = field(default_factory=lambda: [{"prefix": "", "code": "", "numeric": True}])
    """What rows become; the first entry that fits takes a row. Codes of ``prefix`` and ``suffix`` are no events."""
    suffix: list[Any] = field(default_factory=lambda: [{"prefix": "DSCG", "code": "HOSPITAL_DISCHARGE(?://|$)"}])
    """Tokens before TL_END, at the discharge."""
    columns: dict[str, str] = field(default_factory=dict)
    """Further columns of the dataset for expressions: name to ``text`` or ``number``."""
    quantizer: str = "deciles"
    """``deciles`` (Q0 to Q9), ``ventiles`` (Q0 to Q19), ``centiles`` (Q0 to Q99), ``sigmas`` (Q3- to Q3+)."""
    detect_discrete: bool = False
    """Whether a token with no more distinct numbers than there are bins has one bin a number."""
    reference_ranges: str | None = None
    """CSV or Parquet with token, lower, upper: 5 bins below, 10 within, 5 above, each of equal share. Ventiles only."""
    fused: bool = True
    """Whether a bin is part of the token (``LAB_K_Q3``) or one of its own (``LAB_K``, ``Q3``)."""
    time_spacing: bool = True
    """Whether one of 13 tokens stands before what comes 5 minutes or more after what is before it."""
    min_count: int = 1
    """A token with fewer rows than this in train becomes [UNK]."""
    max_event_days: float | None = None
    """Events later than this after the admission are replaced by one ELLIPSIS."""
    cut_hours: float | None = None
    """Tokens later than this after the admission are left out; what is fitted stays the same."""
    max_length: int | None = None
    """The last of so many tokens of a hospitalization is TRUNC; what is fitted stays the same."""


@hookimpl
def ehr_tokenizers() -> Iterator[Component]:
    yield Component(
        name="fms",
        target="ehr_fms.fms:Fms",
        config=FmsConfig,
        summary="Configurable prefix, events and suffix of each hospitalization",
    )
