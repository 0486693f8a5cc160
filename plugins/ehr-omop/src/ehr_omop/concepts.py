"""OMOP concepts as codes, ``VOCABULARY//code``: ``SNOMED//65363002``, ``RXNORM//308182``, ``VISIT//IP``.

A full vocabulary has millions of concepts, so only ids and codes are held, in order of id; names are looked up at the
end, for the codes that occur.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
from ehr_core.formats.parquet import read_frame, write_frame
from ehr_tokenize.sources.cells import Batch, Reading
from ehr_tokenize.sources.record_files import Table, batches

COLUMNS = ("concept_id", "vocabulary_id", "concept_code")
BUILT_IN: dict[int, tuple[str, str]] = {
    8507: ("GENDER//M", "Male"),
    8532: ("GENDER//F", "Female"),
    8515: ("RACE//ASIAN", "Asian"),
    8516: ("RACE//BLACK", "Black or African American"),
    8527: ("RACE//WHITE", "White"),
    8557: ("RACE//PACIFIC_ISLANDER", "Native Hawaiian or Other Pacific Islander"),
    8657: ("RACE//AMERICAN_INDIAN", "American Indian or Alaska Native"),
    38003563: ("ETHNICITY//HISPANIC", "Hispanic or Latino"),
    38003564: ("ETHNICITY//NOT_HISPANIC", "Not Hispanic or Latino"),
    9201: ("VISIT//IP", "Inpatient Visit"),
    9202: ("VISIT//OP", "Outpatient Visit"),
    9203: ("VISIT//ER", "Emergency Room Visit"),
    262: ("VISIT//ERIP", "Emergency Room and Inpatient Visit"),
}
"""Concepts that every database uses, also one that is exported without its vocabulary; races by name, not number."""


def _codes(batch: Batch) -> pl.Series:
    """Codes of rows of the concept table: the vocabulary in capitals and without blanks."""
    vocabulary = batch.text("vocabulary_id").str.to_uppercase().str.replace_all(r"\s+", "_")
    return (vocabulary.fill_null("OMOP") + "//" + batch.text("concept_code")).alias("code")


def write_concepts(table: Table | None, path: Path, reading: Reading) -> None:
    """Leave ids and codes on disk for `Concepts`, those that are built in first."""
    parts = [pl.DataFrame({"id": list(BUILT_IN), "code": [code for code, _ in BUILT_IN.values()]})]
    for batch in batches(table, COLUMNS, (), reading) if table else ():
        parts.append(pl.DataFrame([batch.integer("concept_id").alias("id"), _codes(batch)]).drop_nulls())
    write_frame(path, pl.concat(parts).unique("id", keep="first", maintain_order=True).sort("id"))


class Concepts:
    """Codes by concept id."""

    def __init__(self, path: Path):
        frame = read_frame(path)
        self.id_C = frame["id"].to_numpy()
        self.code_C = frame["code"]

    def find(self, ids: pl.Series) -> pl.Series:
        """Codes of ids; null for 0 and for null, ``OMOP//id`` for an id that the vocabulary lacks."""
        id_N = ids.fill_null(0).to_numpy()
        at_N = np.minimum(np.searchsorted(self.id_C, id_N), len(self.id_C) - 1)
        code = self.code_C.gather(at_N)
        code = code.set(pl.Series(self.id_C[at_N] != id_N), None)
        return pl.select(
            pl.when(pl.Series(id_N != 0)).then(pl.coalesce(code, pl.lit("OMOP//") + ids.cast(pl.String)))
        ).to_series()


@functools.lru_cache(maxsize=1)
def load_concepts(path: Path) -> Concepts:
    """The concepts that `write_concepts` left, kept for the next table."""
    return Concepts(path)


def names(table: Table | None, wanted: pl.Series) -> pl.DataFrame:
    """``code`` and ``name`` of those of the wanted codes that have a name."""
    found = [pl.DataFrame({"code": [c for c, _ in BUILT_IN.values()], "name": [n for _, n in BUILT_IN.values()]})]
    found += list(_names(table, wanted)) if table else []
    return pl.concat(found).unique("code", keep="first", maintain_order=True)


def _names(table: Table, wanted: pl.Series) -> Iterator[pl.DataFrame]:
    for batch in batches(table, COLUMNS, ("concept_name",)):
        named = pl.DataFrame([_codes(batch), batch.text("concept_name").alias("name")])
        yield named.filter(pl.col("code").is_in(wanted.implode()) & pl.col("name").is_not_null())
