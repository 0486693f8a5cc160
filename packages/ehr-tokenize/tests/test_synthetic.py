"""The synthetic cohort as a dataset: bytes, schemas, order, rates, settings."""

import hashlib
import subprocess
import sys
from pathlib import Path

import meds
import numpy as np
import polars as pl
import pytest
from ehr_core.constants import SPLITS
from ehr_core.errors import ConfigError
from ehr_core.executors import Processes, Serial
from ehr_core.formats.labels import read_labels
from ehr_core.outcomes import COLUMNS
from ehr_core.plugin import ProcessesConfig, SerialConfig
from ehr_tokenize.synthetic import SyntheticConfig, SyntheticSource
from ehr_tokenize.synthetic import parameters as params
from ehr_tokenize.synthetic.events import draw_shard
from ehr_tokenize.synthetic.laws import YEAR, disease_probability
from ehr_tokenize.synthetic.tables import all_tables
from ehr_tokenize.synthetic.truth import TASKS
from ehr_tokenize.testing import check_meds

MEDS_COLUMNS = ("subject_id", "prediction_time", "boolean_value", "integer_value", "float_value")
DOCS = Path(__file__).parents[3] / "docs" / "synthetic.md"


def write(folder: Path, executor=None, **settings) -> Path:
    folder.mkdir(parents=True)
    return SyntheticSource(SyntheticConfig(**settings)).provide(folder, executor or Serial(SerialConfig()))


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("cohort") / "meds", num_subjects=600, shard_subjects=200, seed=3)


@pytest.fixture(scope="module")
def events(cohort) -> pl.DataFrame:
    parts = [pl.read_parquet(f).with_columns(file=pl.lit(str(f))) for f in sorted(cohort.glob("data/*/*.parquet"))]
    return pl.concat(parts)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    one = write(tmp_path / "one", num_subjects=60, seed=5)
    same = write(tmp_path / "same", num_subjects=60, seed=5)
    other = write(tmp_path / "other", num_subjects=60, seed=6)
    assert digests(one) == digests(same)
    assert digests(one)["data/train/0.parquet"] != digests(other)["data/train/0.parquet"]


def test_the_executor_does_not_matter(tmp_path):
    here = write(tmp_path / "here", num_subjects=60, shard_subjects=20)
    pool = write(tmp_path / "pool", Processes(ProcessesConfig(num_workers=2)), num_subjects=60, shard_subjects=20)
    assert digests(here) == digests(pool)


def test_a_shard_depends_on_the_seed_and_its_number_alone(tmp_path):
    few = write(tmp_path / "few", num_subjects=100, shard_subjects=40, train=0.8)
    many = write(tmp_path / "many", num_subjects=500, shard_subjects=40, train=0.8)
    for name in ("data/train/0.parquet", "data/train/1.parquet"):
        assert digests(few)[name] == digests(many)[name]


def test_every_table_is_valid_meds(cohort):
    assert len(sorted(cohort.glob("data/*/*.parquet"))) == 5
    check_meds(cohort)


def test_rows_are_sorted_by_subject_and_time_with_static_rows_first(events):
    for _, rows in events.group_by("file"):
        key = rows.select("subject_id", pl.col("time").cast(pl.Int64).fill_null(-(2**62))).to_numpy()
        assert (np.lexsort((key[:, 1], key[:, 0])) == np.arange(len(key))).all()
    static = events.filter(pl.col("time").is_null())
    assert set(static["code"].str.split("//").list.first()) == {"GENDER", "RACE"}
    assert len(static) == 2 * 600


def test_every_subject_is_in_the_split_that_its_file_says(cohort, events):
    splits = pl.read_parquet(cohort / meds.subject_splits_filepath)
    assert dict(splits["split"].value_counts().iter_rows()) == {"train": 480, "tuning": 60, "held_out": 60}
    found = events.select("subject_id", split=pl.col("file").str.split("/").list.get(-2)).unique().sort("subject_id")
    assert found.equals(splits.sort("subject_id"))


def test_every_code_has_metadata(cohort, events):
    known = set(pl.read_parquet(cohort / meds.code_metadata_filepath)["code"])
    assert set(events["code"]) <= known


def test_nothing_happens_after_the_study_or_after_death(events):
    timed = events.filter(pl.col("time").is_not_null())
    last = timed.group_by("subject_id", maintain_order=True).last()
    assert set(last["code"]) == {"MEDS_DEATH", "END_OF_FOLLOW_UP"}
    assert str(timed["time"].max()) == "2020-01-01 00:00:00"
    assert (timed.filter(pl.col("code") == "END_OF_FOLLOW_UP")["time"] == timed["time"].max()).all()


def test_every_stay_ends_in_a_discharge_or_a_death(events):
    code = pl.col("code")
    edges = events.filter(code.str.starts_with("HOSPITAL_") | (code == "MEDS_DEATH")).with_columns(
        following=code.shift(-1).over("subject_id")
    )
    starts = edges.filter(code.str.starts_with("HOSPITAL_ADMISSION"))
    following = starts["following"].str.split("//").list.first()
    assert set(following) == {"HOSPITAL_DISCHARGE", "MEDS_DEATH"}
    ends = edges.filter(code.str.starts_with("HOSPITAL_DISCHARGE") & pl.col("following").is_not_null())
    assert set(ends["following"].str.split("//").list.first()) == {"HOSPITAL_ADMISSION", "MEDS_DEATH"}


def test_the_defaults_make_a_cohort_of_the_promised_shape():
    shard = draw_shard(SyntheticConfig(), 0, 5000, 1)
    stays, rows = len(shard.stays.subject_N) / 5000, len(shard.data) / 5000
    assert 2 <= stays <= 4
    assert 60 <= rows <= 150
    assert 0.05 <= np.mean(shard.labels["in_hospital_mortality"]["boolean_value"].to_numpy(False)) <= 0.10


def test_prevalences_are_those_of_the_table():
    shard = draw_shard(SyntheticConfig(), 1, 20_000, 1)
    first = shard.stays.previous_N == 0
    disease_ND, who = shard.stays.disease_ND[first], shard.stays.subject_N[first]
    age = (shard.stays.admission_N[first] - shard.subjects.birth_M[who]) / YEAR
    for d, disease in enumerate(params.DISEASES):
        p = disease_probability(d, age, shard.subjects.male_M[who], disease_ND)
        error = np.sqrt((p * (1 - p)).sum()) / len(p)
        assert abs(disease_ND[:, d].mean() - p.mean()) < 4 * error, disease.name


def test_a_woman_of_65_without_parents_has_the_prevalence_of_the_table():
    none_ND = np.zeros((1, len(params.DISEASES)), bool)
    for d, disease in enumerate(params.DISEASES):
        found = disease_probability(d, np.array([65.0]), np.array([False]), none_ND)
        assert found[0] == pytest.approx(disease.prevalence)


def coded(settings: SyntheticConfig) -> pl.Series:
    codes = pl.Series(draw_shard(settings, 0, 1000, 1).data["code"].to_pylist())
    return codes.filter(codes.str.contains(r"^(DIAGNOSIS|ATC)//"))


@pytest.mark.parametrize("chance", [0.0, 0.15, 1.0])
def test_novel_codes_appear_at_the_asked_rate(chance):
    codes = coded(SyntheticConfig(novel_probability=chance))
    share = codes.str.contains(r"N[1-4]$").mean()
    assert abs(share - chance) <= 4 * np.sqrt(chance * (1 - chance) / len(codes))


def test_no_plain_code_looks_like_a_variant():
    assert not coded(SyntheticConfig()).str.contains(r"N[1-9]$").any()


def measured(missingness: float) -> int:
    codes = pl.Series(draw_shard(SyntheticConfig(missingness=missingness), 0, 1000, 1).data["code"].to_pylist())
    return int(codes.str.contains("^(LAB|VITAL)//").sum())


def test_missing_measurements_appear_at_the_asked_rate():
    # The stays are drawn before the measurements, so all cohorts of one seed plan the same ones.
    planned = measured(0.0)
    assert measured(0.3) / planned == pytest.approx(0.7, abs=0.01)
    assert measured(1.0) == 0


def test_values_are_on_the_grid_of_their_analyte(events):
    for analyte in params.ANALYTES:
        values = events.filter(pl.col("code") == analyte.code)["numeric_value"].to_numpy().astype(float)
        steps = (values - analyte.low) / analyte.step
        assert len(values)
        assert values.min() >= analyte.low - 1e-5
        assert values.max() <= analyte.high + 1e-5
        assert np.abs(steps - np.rint(steps)).max() < 1e-3


@pytest.mark.parametrize("task", TASKS)
def test_labels_of_every_task_are_read_with_kind_names_and_truth(cohort, task):
    labels, question = read_labels(cohort / "labels" / task), TASKS[task].question
    assert labels.question == question
    for split in SPLITS:
        table, truth = labels.tables[split], COLUMNS[question.kind].truth
        assert table.column_names == ["subject_id", "prediction_time", *COLUMNS[question.kind].label, truth]
        assert len(table)
        known = labels.truth(split)
        assert known.shape == ((len(table), question.num_outputs) if question.names else (len(table),))
        assert np.isfinite(known).all()
        aligned = meds.LabelSchema.align(table.select([n for n in table.column_names if n in MEDS_COLUMNS]))
        meds.LabelSchema.validate(aligned)


def test_labels_that_a_short_study_cannot_judge_are_none(tmp_path):
    folder = write(tmp_path / "short", num_subjects=40, study_end="2011-06-01")
    labels = read_labels(folder / "labels" / "next_diagnoses")
    assert labels.question.names == tuple(disease.name for disease in params.DISEASES)
    assert {split: len(labels.tables[split]) for split in labels.splits} == dict.fromkeys(SPLITS, 0)


def test_a_cohort_of_one_subject_is_a_dataset(tmp_path):
    folder = write(tmp_path / "one", num_subjects=1)
    assert [path.name for path in (folder / "data").iterdir()] == ["train"]


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"novel_probability": 1.5}, "source.novel_probability is 1.5"),
        ({"missingness": float("nan")}, "source.missingness is nan"),
        ({"num_subjects": 0}, "source.num_subjects is 0"),
        ({"train": 0.5}, "add up to 0.7"),
        ({"study_start": "soon"}, "source.study_start is 'soon'"),
        ({"study_end": "2010-02-01"}, "at least 90 days"),
        ({"seed": -1}, "source.seed is -1"),
    ],
)
def test_settings_that_make_no_cohort_are_refused(wrong, word):
    with pytest.raises(ConfigError, match=word):
        SyntheticSource(SyntheticConfig(**wrong))


def test_importing_the_settings_imports_nothing_heavy():
    check = "import sys, ehr_tokenize.synthetic; print([m for m in ('numpy', 'polars', 'pyarrow') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_documentation_has_the_tables_of_the_parameters():
    if not DOCS.exists():
        pytest.skip(f"{DOCS.name} is not beside the package: installed without the repository")
    text = DOCS.read_text()
    for heading, table in all_tables().items():
        assert f"### {heading}\n" in text
        assert table in text, f"docs/synthetic.md, {heading}: run python -m ehr_tokenize.synthetic.tables"
