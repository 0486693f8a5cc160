"""The source ``mimic_iv``: MIMIC-IV's own files to MEDS, by the public ETL, with what is there.

Before the ETL starts every table is looked through (see `tables`), its specification is cut down to what is there (see
`spec`), and each subject is given its split. Afterwards every row is checked as any MEDS dataset is. What was left out
is said on stderr and kept in ``metadata/mimic_iv.json``. The same files, settings and versions give the same bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from ehr_core.constants import SPLITS
from ehr_core.errors import ConfigError, DataError
from ehr_core.executors import Serial
from ehr_core.formats.folder import digest_of, file_digest, new_folder, read_json, write_json
from ehr_core.formats.meds import read_events, shards
from ehr_core.formats.parquet import read_frame, write_frame
from ehr_core.plugin import SerialConfig
from ehr_core.progress import track
from ehr_core.protocols import Executor
from ehr_tokenize.sources.splits import shares_of, split_of

from ehr_mimic_iv import environment, tables
from ehr_mimic_iv.environment import Etl
from ehr_mimic_iv.plugin import ExtractConfig, MimicIvConfig
from ehr_mimic_iv.run import run
from ehr_mimic_iv.spec import LeftOut, Needs, needs_of, prune, tables_of
from ehr_mimic_iv.tables import PATIENTS, Check, Found

NOWHERE = "nowhere"
"""What the ETL is told to call the split of subjects that hosp/patients does not have; it is not kept."""


@dataclasses.dataclass
class Plan:
    """What the ETL is to do."""

    spec: dict[str, Any]
    left: LeftOut
    files: dict[str, Path]
    """The files that it reads, by name."""
    subjects: pl.Series
    strangers: dict[str, int]
    """Table to rows of subjects that hosp/patients does not have."""
    mend: dict[str, Check]
    """Tables that reach the ETL with cells mended."""
    mended: dict[str, dict[str, int]]
    """Table to how many cells, by kind."""


class MimicIv:
    """See the module. Raises ConfigError for settings that contradict each other."""

    place = None

    def __init__(self, settings: MimicIvConfig):
        self.shares = shares_of(settings.train, settings.tuning, settings.held_out)
        if settings.shard_subjects < 1:
            raise ConfigError(f"source.shard_subjects is {settings.shard_subjects}; it must be at least 1")
        if settings.damaged not in ("refuse", "skip"):
            raise ConfigError(f"source.damaged is {settings.damaged!r}; allowed: refuse, skip")
        if settings.time_zone:
            raise ConfigError("source.time_zone is set, but the times of MIMIC-IV have no zone; leave it out")
        self.settings = settings
        self.empty = tuple(word.strip().lower() for word in settings.empty)
        self.path = Path(settings.path)

    @functools.cached_property
    def etl(self) -> Etl:
        """The ETL, found when it is first asked for."""
        return environment.find(self.settings.environment)

    def files(self) -> dict[str, Path]:
        """The files of the folder that the ETL knows, by name; the folder is looked at before the ETL."""
        tables.files_of(self.path, [PATIENTS])
        return tables.files_of(self.path, tables_of(self.etl.spec))

    def fingerprint(self) -> Mapping[str, str]:
        """sha256 of each file, and of the ETL's specification and versions."""
        made_by = {"etl": digest_of([self.etl.spec, self.etl.versions])} if self.files() else {}
        return {name: file_digest(path) for name, path in self.files().items()} | made_by

    def provide(self, output: Path, executor: Executor) -> Path:
        """Fill ``output``. Raises DataError for a table that cannot be used, EhrError when the ETL fails."""
        plan = self._plan(executor)
        _say(plan)
        output.mkdir(parents=True, exist_ok=True)
        work = output / ".etl"
        shutil.rmtree(work, ignore_errors=True)
        self._prepare(work, plan)
        known = {*plan.files, *(name for path in plan.files.values() for name in tables.columns_of(path) or ())}
        made = run(self.etl, work, known)
        self._take(made, output, plan)
        shutil.rmtree(work)
        rows = sum(track(executor.map(_rows, [s.path for s in shards(output)]), "mimic_iv: check", unit="shards"))
        print(f"mimic_iv: {rows:,} events of {len(plan.subjects):,} subjects", file=sys.stderr)
        return output

    # -- before

    def _plan(self, executor: Executor) -> Plan:
        """Look through the tables. Raises DataError that names every one that cannot be used."""
        files, whole = self.files(), self.etl.spec
        heads = {name: tables.columns_of(path) for name, path in files.items()}
        first, _ = prune(whole, {name: head for name, head in heads.items() if head})
        needs = needs_of(first)
        # One that is not used as it stands is looked at too: it may be damaged where its columns are named.
        jobs = {name: needs.get(name, Needs()) for name in files}
        first_job = Check(files[PATIENTS], jobs.pop(PATIENTS), empty=self.empty)
        patients = tables.check(first_job)
        if patients.faults or not patients.rows:
            raise DataError(f"{files[PATIENTS]}: {'; '.join(patients.faults) or 'has no row'}")
        subjects = tables.subjects_of(first_job)
        checks = {name: Check(files[name], need, subjects, self.empty) for name, need in jobs.items()}
        done = track(executor.map(tables.check, list(checks.values())), "mimic_iv: look through", len(checks), "tables")
        found = {PATIENTS: patients} | dict(zip(jobs, done, strict=True))
        self._refuse(files, found)
        usable = {name: f.columns for name, f in found.items() if f.rows and not f.faults}
        kept, left = prune(whole, usable)
        for name, f in found.items():
            if name not in usable:
                part = left.dictionaries if tables_of(whole)[name] else left.tables
                part[name] = f"damaged: {'; '.join(f.faults)}" if f.faults else "empty"
        if not kept:
            raise DataError(
                f"nothing is left of {self.path}: {'; '.join(f'{n} ({w})' for n, w in left.tables.items())}"
            )
        used = {name: files[name] for name in tables_of(kept)}
        strangers = {n: f.strangers for n, f in found.items() if n in used and f.strangers}
        changed = {n: f.mended for n, f in found.items() if n in used and f.mended}
        mend = {n: job for n, job in ({PATIENTS: first_job} | checks).items() if n in changed}
        return Plan(kept, left, used, subjects, strangers, mend, changed)

    def _refuse(self, files: Mapping[str, Path], found: Mapping[str, Found]) -> None:
        wrong = [f"{files[name]}: {'; '.join(f.faults)}" for name, f in found.items() if f.faults]
        wrong += [
            f"{files[name]}: {f.strangers:,} of {f.rows:,} rows are of subjects that {PATIENTS} does not have"
            for name, f in found.items()
            if f.strangers
        ]
        if wrong and self.settings.damaged == "refuse":
            raise DataError(f"{'; '.join(wrong)}; mend it, or leave such tables and rows out with source.damaged=skip")

    def _prepare(self, work: Path, plan: Plan) -> None:
        """The folder that the ETL starts in: links to tables or mended copies, the specification, and the splits."""
        for name, path in plan.files.items():
            place = work / "raw" / path.relative_to(self.path)
            place.parent.mkdir(parents=True, exist_ok=True)
            if name in plan.mend:
                tables.write_mended(plan.mend[name], place.with_name(f"{plan.mend[name].table}.csv"))
            else:
                place.symlink_to(path.absolute())
        splits = {split: ids.to_list() for split, ids in self._splits(plan.subjects).items() if len(ids)}
        write_json(work / "splits.json", splits)
        options = {
            "dataset_name": "MIMIC-IV",
            "raw_dataset_version": "unknown",
            "n_subjects_per_shard": self.settings.shard_subjects,
            "external_splits_json_fp": str((work / "splits.json").absolute()),
            "split_fracs": {NOWHERE: 1.0},
        }
        # JSON is YAML; not sorted, because the order of tables decides the order of events of one time.
        (work / "spec.yaml").write_text(json.dumps({"etl": options} | plan.spec, ensure_ascii=False, indent=1))

    def _splits(self, subjects: pl.Series) -> dict[str, pl.Series]:
        index = split_of(subjects.to_numpy(), self.settings.seed, self.shares)
        return {split: subjects.filter(pl.Series(index == number)) for number, split in enumerate(SPLITS)}

    # -- after

    def _take(self, made: Path, output: Path, plan: Plan) -> None:
        """Move what the ETL made, and write down how."""
        for part in ("data", "metadata"):
            shutil.rmtree(output / part, ignore_errors=True)  # of an attempt that was killed
        (output / "metadata").mkdir()
        made_shards = sorted(path for split in SPLITS for path in (made / "data" / split).glob("*.parquet"))
        if not made_shards:
            raise DataError(f"{self.path} gives no event; the ETL read {', '.join(sorted(plan.files))}")
        empty = read_frame(made_shards[0]).clear()
        (output / "data").mkdir()
        for split in SPLITS:
            if (made / "data" / split).is_dir():
                (made / "data" / split).rename(output / "data" / split)
            else:  # MEDS wants a file in each split, also one without rows
                (output / "data" / split).mkdir()
                write_frame(output / "data" / split / "0.parquet", empty)
        (made / "metadata" / "codes.parquet").rename(output / "metadata" / "codes.parquet")
        splits = self._splits(plan.subjects).items()
        owners = [pl.DataFrame({"subject_id": ids}).with_columns(split=pl.lit(name)) for name, ids in splits]
        write_frame(output / "metadata" / "subject_splits.parquet", pl.concat(owners).sort("subject_id"))
        versions = self.etl.versions
        facts = {
            "dataset_name": "MIMIC-IV",
            "etl_name": "MIMIC-IV-MEDS",
            "etl_version": versions["mimic-iv-meds"],
            "meds_version": read_json(made / "metadata" / "dataset.json", dict[str, Any])["meds_version"],
        }
        write_json(output / "metadata" / "dataset.json", facts)
        told = {"left_out": dataclasses.asdict(plan.left), "rows_of_unknown_subjects": plan.strangers}
        told |= {"mended": plan.mended}
        write_json(output / "metadata" / "mimic_iv.json", told | {"tables": sorted(plan.files), "versions": versions})


def _rows(path: Path) -> int:
    """Rows of a shard, each of them checked."""
    return len(read_events(path))


def _say(plan: Plan) -> None:
    """What is mended and left out, on stderr."""
    cells = [f"{name}, {kind}: {count:,}" for name, kinds in plan.mended.items() for kind, count in kinds.items()]
    if cells:
        print(f"mimic_iv: mended: {'; '.join(cells)}", file=sys.stderr)
    left = plan.left
    parts = {
        "tables": [f"{name} ({why})" for name, why in left.tables.items()],
        "events": [f"{name} (no {', '.join(columns)})" for name, columns in left.events.items()],
        "columns": [f"{name}: {', '.join(columns)}" for name, columns in left.columns.items()],
        "dictionaries": [f"{name} ({why})" for name, why in left.dictionaries.items()],
        "rows of unknown subjects": [f"{name}: {rows:,}" for name, rows in plan.strangers.items()],
    }
    for what, found in parts.items():
        if found:
            print(f"mimic_iv: {what} left out: {'; '.join(found)}", file=sys.stderr)


def extract(settings: ExtractConfig) -> int:
    """Write the dataset to a folder that is kept. Raises EhrError."""
    with new_folder(Path(settings.output)) as folder:
        MimicIv(settings).provide(folder, Serial(SerialConfig()))
    return 0
