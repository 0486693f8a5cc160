"""Patients that are valid JSON and yet cannot be read for what they mean."""

import pytest
from ehr_core.cli import run
from ehr_core.errors import FormatError

BROKEN = {
    "a key twice": ('[{"patient_id": 1, "sex": "F", "diagnoses": [], "diagnoses": []}]', "patient 1 has a key twice"),
    "deep nesting": ('[{"patient_id": 1, "x": ' + "[" * 100_000 + "]" * 100_000 + "}]", "patient 1 nests too deep"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_it_is_refused_in_one_line_and_nothing_is_left(tmp_path, what):
    text, words = BROKEN[what]
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(FormatError, match=words):
        run(
            "ehr-tokenize",
            "make",
            ["source=patients_json", f"source.path={tmp_path}/p.json", f"output={tmp_path}/meds"],
        )
    assert not (tmp_path / "meds").exists()
