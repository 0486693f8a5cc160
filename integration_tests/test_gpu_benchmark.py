"""The benchmark of networks on a GPU runs whole on a CPU, and counts operations as torch does."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ehr_core.plugins import build
from ehr_models.settings import GPTConfig
from torch.utils.flop_counter import FlopCounterMode

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_models.py"


def test_every_part_is_measured_and_written(tmp_path):
    command = [sys.executable, str(SCRIPT), "--tiny", "--device=cpu", "--peak=0.5", f"--json={tmp_path / 'found.json'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["versions"]["torch"] == torch.__version__
    assert found["device"] in done.stdout
    rows = {part: [row["name"] for row in rows] for part, rows in found["results"].items()}
    assert {part: len(names) for part, names in rows.items()} == {
        "train": 7,
        "experts": 2,
        "attention": 3,
        "generate": 2,
    }
    assert all(name in done.stdout for names in rows.values() for name in names)
    assert all(row["tokens_per_s"] > 0 for part in found["results"].values() for row in part)
    assert all(0 < row["mfu"] < 1 for row in found["results"]["train"])
    assert found["results"]["experts"][1]["time_over_dense"] > 0


def test_without_a_gpu_nothing_but_tiny_is_measured():
    done = subprocess.run([sys.executable, str(SCRIPT), "--device=cpu"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "give --tiny" in done.stderr


@pytest.mark.parametrize("settings", [{"norm": "rms", "mlp": "swiglu"}, {"num_experts": 4}])
def test_operations_of_a_step_are_those_that_torch_counts(settings):
    spec = importlib.util.spec_from_file_location("gpu_models", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script
    spec.loader.exec_module(script)
    shape = GPTConfig(num_layers=2, num_heads=4, width=64, context_length=8, **settings)
    model = build("model", shape, vocabulary_size=320, columns=[])
    token = torch.randint(7, 320, (4, 8))
    with FlopCounterMode(display=False) as counter:
        model.lm_logits(model(token).last_hidden_state).sum().backward()
    attention = 12 * shape.num_layers * shape.width * shape.context_length / 2  # which torch does not count on CPU
    assert counter.get_total_flops() / 32 == pytest.approx(
        script.flops_per_token(model, shape, 1.0) - attention, rel=0.01
    )
