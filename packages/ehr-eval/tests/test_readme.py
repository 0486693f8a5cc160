"""What the README prints works as printed, from the first command to the last."""

import json
from pathlib import Path

from ehr_core.testing.documents import printed_commands
from ehr_eval.cli import main

README = Path(__file__).parents[1] / "README.md"


def test_the_commands_of_the_readme_lead_from_records_to_a_report(parts, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    places = {"DIR": str(tiny), "NEW": str(tiny), "TASK": "readmission_30d"}
    done = []
    for arguments in printed_commands(README, "ehr-eval", places):
        monkeypatch.setattr("sys.argv", ["ehr-eval", *arguments])
        assert main() == 0, capsys.readouterr().err
        done.append(arguments[0])
    assert done == ["label", "benchmark", "fit", "apply", "predict", "evaluate", "report"]
    one, other = (json.loads((tmp_path / place / "scores.json").read_text())["scores"] for place in ("OUT", "SCORES"))
    assert one == other
    assert {row["task"] for row in one} == {"in_hospital_mortality", "readmission_30d"}
    assert f"{one[0]['value']:.3f}" in (tmp_path / "REPORT" / "report.html").read_text()
