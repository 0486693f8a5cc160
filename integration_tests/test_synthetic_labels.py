"""The labels that a synthetic cohort is drawn with are those that the tasks find in its events, for every kind."""

import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from ehr_core.cli import run
from ehr_core.constants import SPLITS
from ehr_core.errors import DataError
from ehr_core.formats.labels import Labels, read_labels, write_labels
from ehr_core.outcomes import COLUMNS
from ehr_core.plugin import SerialConfig
from ehr_core.plugins import build, registry
from ehr_core.testing.corruption import reseal

DOCS = Path(__file__).parents[1] / "docs" / "synthetic.md"
TASKS = {
    "in_hospital_mortality": "binary",
    "readmission_30d": "binary",
    "length_of_stay": "regression",
    "length_of_stay_class": "multiclass",
    "next_diagnoses": "multilabel",
    "time_to_death": "survival",
}


def draw(folder: Path, **settings) -> Path:
    folder.mkdir()
    source = registry().get("source", "synthetic").config(num_subjects=900, shard_subjects=250, **settings)
    build("source", source).provide(folder, build("executor", SerialConfig()))
    return folder


def label(meds: Path, output: Path, *tasks: str) -> dict[str, Labels]:
    run("ehr-eval", "label", ["source=meds", f"source.path={meds}", f"task=[{','.join(tasks)}]", f"output={output}"])
    return {task: read_labels(output / task) for task in tasks}


@pytest.mark.parametrize(
    "settings",
    [{"seed": 1}, {"seed": 2, "mortality_scale": 5.0, "readmission_scale": 5.0}, {"seed": 3, "missingness": 0.9}],
    ids=["usual", "many outcomes", "little measured"],
)
def test_drawn_and_computed_labels_are_the_same(tmp_path, settings):
    cohort = draw(tmp_path / "cohort", **settings)
    bare = tmp_path / "bare"  # without its own labels, so that nothing can be taken from them
    shutil.copytree(cohort, bare, ignore=shutil.ignore_patterns("labels"))
    found = label(bare, tmp_path / "out", *TASKS)
    for task, kind in TASKS.items():
        drawn, computed = read_labels(cohort / "labels" / task), found[task]
        assert computed.question == drawn.question
        assert computed.question.kind == kind
        for split in SPLITS:
            key = ["subject_id", "prediction_time"]
            assert computed.tables[split].column_names == [*key, *COLUMNS[kind].label]
            assert drawn.tables[split].select(key).equals(computed.tables[split].select(key)), f"{task} {split}"
            np.testing.assert_allclose(computed.array(split), drawn.array(split), rtol=1e-15, err_msg=f"{task} {split}")
        assert len(computed.tables["train"]) > (150 if task == "next_diagnoses" else 500)
        assert len(np.unique(computed.array("train"))) > 1


def test_the_truths_of_a_cohort_come_along_with_the_labels(tmp_path):
    cohort = draw(tmp_path / "cohort", seed=1)
    found = label(cohort, tmp_path / "out", *TASKS)
    for task in TASKS:
        own = read_labels(cohort / "labels" / task)
        for split in SPLITS:
            np.testing.assert_array_equal(found[task].truth(split), own.truth(split))
            assert found[task].truth(split) is not None


@pytest.mark.parametrize("task", ["in_hospital_mortality", "length_of_stay"])
def test_labels_that_do_not_agree_with_the_events_are_refused(tmp_path, task):
    cohort = draw(tmp_path / "cohort", seed=1)
    path, column = cohort / "labels" / task / "train.parquet", COLUMNS[TASKS[task]].label[0]
    table = read_labels(path.parent).tables["train"]
    values = table[column].to_pylist()
    values[7] = not values[7] if isinstance(values[7], bool) else values[7] + 1.0
    changed = table.set_column(table.column_names.index(column), column, [values])
    assert pc.sum(pc.not_equal(changed[column], table[column])).as_py() == 1
    write_labels(path, changed, TASKS[task])
    reseal(path.parent)
    with pytest.raises(DataError, match="does not agree with the task: 1 "):
        label(cohort, tmp_path / "out", task)


def test_the_documentation_has_the_attainable_scores_that_its_script_prints(tmp_path, capsys):
    for module in ("lifelines", "sklearn"):
        pytest.importorskip(module)
    text = DOCS.read_text()
    script = tmp_path / "attainable.py"
    script.write_text(re.search(r'```python title="attainable.py"\n(.*?)```', text, re.DOTALL)[1])
    (tmp_path / "cohort").mkdir()
    runpy.run_path(str(script))["main"](5000, 1, tmp_path / "cohort")
    rows = capsys.readouterr().out.splitlines()
    assert [row.split("`")[1] for row in rows if row.startswith("| `")] == [
        "in_hospital_mortality",
        "length_of_stay",
        "length_of_stay_class",
        "time_to_death",
        "readmission_30d",
        "next_diagnoses",
    ]
    assert [row for row in rows if row.startswith("| `") and row not in text] == []
