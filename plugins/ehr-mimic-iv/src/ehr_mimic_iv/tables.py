"""The raw folder: which tables are there, with which columns, and whether the ETL can get through them.

Each table is read once as a stream before the ETL starts, as text, a few columns of it as what they should be. That
takes seconds a gigabyte; the ETL would take hours to find the same fault, and would name a patient's value.
"""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
from ehr_core.errors import FormatError, NotApplicable

from ehr_mimic_iv.mend import SUBJECT, mended
from ehr_mimic_iv.spec import Needs

PATIENTS = "hosp/patients"
FORMS = (".csv.gz", ".csv")


def files_of(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """Name to file of the tables that are there. Raises FormatError for a table that is there twice."""
    if not folder.is_dir():
        raise FormatError(f"{folder} is not a folder; expected one with hosp and icu, as MIMIC-IV is distributed")
    if not (folder / "hosp").is_dir():
        raise NotApplicable(
            f"{folder} has no folder hosp; source=mimic_iv reads MIMIC-IV's own files (MEDS: source=meds)"
        )
    found = {}
    for name in names:
        there = [path for form in FORMS if (path := folder / f"{name}{form}").is_file()]
        if len(there) > 1:
            raise FormatError(f"{there[0]} and {there[1].name} are both there; remove one of them")
        if there:
            found[name] = there[0]
    if PATIENTS not in found:
        raise FormatError(f"{folder} has no {PATIENTS}.csv or .csv.gz, without which there are no subjects")
    return found


@dataclass(frozen=True)
class Check:
    """A table, and what the ETL needs of it."""

    path: Path
    needs: Needs
    subjects: pl.Series | None = None
    """Ids that hosp/patients has."""
    empty: tuple[str, ...] = ()
    """Words for nothing, in lower case."""

    @property
    def table(self) -> str:
        """Name of the table: that of the file."""
        return self.path.name.split(".")[0]


@dataclass(frozen=True)
class Found:
    """What is in a table."""

    columns: frozenset[str] = frozenset()
    """Without keys that have no value in any row, which cannot join."""
    rows: int = 0
    strangers: int = 0
    """Rows of subjects that hosp/patients does not have."""
    mended: dict[str, int] = field(default_factory=dict)
    """Cells that are not what the ETL should read, by kind; see `mend`."""
    faults: list[str] = field(default_factory=list)


def header(path: Path) -> frozenset[str]:
    """Names of the columns. Raises OSError, EOFError, zlib.error or UnicodeDecodeError for what is no CSV."""
    with (
        gzip.open(path, "rt", encoding="utf-8-sig", newline="")
        if path.suffix == ".gz"
        else path.open(encoding="utf-8-sig", newline="") as file
    ):
        return frozenset(next(csv.reader(file), ()))


UNREADABLE = (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error)


def columns_of(path: Path) -> frozenset[str] | None:
    """Names of the columns; None for a file that cannot be read that far."""
    try:
        return header(path)
    except UNREADABLE:
        return None


def check(job: Check) -> Found:
    """Read a table as a stream, in bounded memory, and say what is in it and what the ETL would trip over."""
    try:
        columns = header(job.path)
        if job.needs.subjects and SUBJECT not in columns:
            return Found(columns, faults=[f"has no column {SUBJECT}"])
        lines, counts = mended(pl.scan_csv(job.path, infer_schema_length=0), job.table, columns, job.needs, job.empty)
        found = lines.select(_questions(job, columns)).collect(engine="streaming").row(0, named=True)
        seen = pl.scan_csv(job.path, infer_schema_length=0).select(n.alias(kind) for kind, n in counts.items())
        changed = seen.collect(engine="streaming").row(0, named=True) if counts else {}
    except (*UNREADABLE, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        return Found(faults=[f"cannot be read ({without_values(str(error))})"])
    rows = found["rows"]
    void = {name for name in job.needs.keys & columns if found[f"{name} has values"] == 0}
    wrong = {what: number for what, number in found.items() if what.startswith("column ") and number}
    faults = [f"{what} in {number:,} of {rows:,} rows" for what, number in wrong.items()]
    kinds = {kind: number for kind, number in changed.items() if number}
    return Found(columns - void, rows, found.get("strangers", 0), kinds, faults)


def write_mended(job: Check, path: Path) -> None:
    """Write a table as the ETL should read it."""
    columns = header(job.path)
    lines, _ = mended(pl.scan_csv(job.path, infer_schema_length=0), job.table, columns, job.needs, job.empty)
    lines.sink_csv(path)


def _questions(job: Check, columns: frozenset[str]) -> list[pl.Expr]:
    """One number each. All columns are read, so that a line of another width or encoding does not go unnoticed."""
    needs = job.needs
    asked = [pl.len().alias("rows"), pl.sum_horizontal(pl.all().null_count()).alias("nulls")]
    asked += [pl.col(name).count().alias(f"{name} has values") for name in sorted(needs.keys & columns)]
    if needs.subjects:
        number = pl.col(SUBJECT).cast(pl.Int64, strict=False)
        asked.append(number.is_null().sum().alias(f"column {SUBJECT} has no whole number"))
        if job.subjects is not None:
            asked.append((~number.is_in(job.subjects.implode())).sum().alias("strangers"))
    for name, form in sorted(needs.times.items()):
        if name in columns:
            text = pl.col(name)
            time = (
                text.str.to_date(form, strict=False) if "%H" not in form else text.str.to_datetime(form, strict=False)
            )
            asked.append((text.is_not_null() & time.is_null()).sum().alias(f"column {name} is no time like {form}"))
    for name in sorted(needs.numbers & columns):
        bad = pl.col(name).is_not_null() & pl.col(name).cast(pl.Float64, strict=False).is_null()
        asked.append(bad.sum().alias(f"column {name} is no number"))
    return asked


def subjects_of(job: Check) -> pl.Series:
    """The ids in hosp/patients, ascending, each once; rows without one are left to `check`."""
    lines, _ = mended(pl.scan_csv(job.path, infer_schema_length=0), job.table, header(job.path), job.needs, job.empty)
    ids = lines.select(pl.col(SUBJECT).cast(pl.Int64, strict=False).drop_nulls())
    return ids.collect(engine="streaming")[SUBJECT].unique().sort()


def without_values(text: str, known: Iterable[str] = ()) -> str:
    """The first line of a library's message without what it quotes, which may be a patient's; known names stay."""
    names = set(known)
    line = next(iter(text.strip().splitlines()), "")
    line = re.sub(r"\[.*\]?", "[...]", line)
    line = re.sub(r"(['\"`])(.*?)(\1|$)", lambda m: m[0] if m[2] in names else "'...'", line)
    return re.sub(r"\d[-/:.\d]{3,}", "...", line).rstrip(" :,")
