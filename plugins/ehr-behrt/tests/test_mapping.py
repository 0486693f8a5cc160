"""How much of the records a mapping file reaches, from the command line."""

import json
from datetime import datetime

from ehr_core.cli import run
from ehr_core.testing.tiny import write_events


def test_a_mapping_that_reaches_few_codes_says_so_and_so_does_the_manifest(tmp_path, capsys):
    codes = ["E119", "I10", "N179"]
    rows = [
        (subject, datetime(2020, 1, day), f"DX//{code}", None)
        for subject in range(1, 6)
        for day, code in enumerate(codes, 1)
    ]
    write_events(tmp_path / "meds/data/train/0.parquet", rows)
    (tmp_path / "phe.json").write_text(json.dumps({"DX//E11.9": "PHE//T2D", "DX//I10": "PHE//HTN"}))
    arguments = ["source=meds", f"source.path={tmp_path}/meds", "tokenizer=behrt", f"output={tmp_path}/store"]
    run("ehr-tokenize", "tokenize", [*arguments, f"tokenizer.mapping={tmp_path}/phe.json"])
    assert "mapping: reached 1 of 3 codes, 5 of 15 events" in capsys.readouterr().out
    content = json.loads((tmp_path / "store" / "manifest.json").read_text())["content"]
    assert content["mappings"] == {"mapping": {"codes": 3, "codes_found": 1, "events": 15, "events_found": 5}}
    run("ehr-tokenize", "inspect-store", [str(tmp_path / "store")])
    assert "mapping: reached 1 of 3 codes, 5 of 15 events" in capsys.readouterr().out
