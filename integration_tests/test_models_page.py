"""The page on models states the size of every model and preset that is installed."""

import re
from pathlib import Path

import pytest
import torch
from ehr_core import config
from ehr_core.plugins import build

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
ROW = re.compile(r"^\| `(\w+)` \| (\d+) \| (\d+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", re.M)
STATED = {name: [int(cell.replace(",", "")) for cell in cells] for name, *cells in ROW.findall(PAGE.read_text())}
COLUMNS = ["age_days", "visit", "segment", "entity", "sex", "region"]


def test_every_model_is_on_the_page():
    assert sorted(STATED) == sorted(config.options()["model"])


@pytest.mark.parametrize("name", STATED)
def test_models_have_the_sizes_that_the_page_states(name):
    settings = config.preset("model", name)
    size = 25_426 if name.startswith("geneformer") else 4_480
    with torch.device("cpu" if name == "hf" else "meta"):  # networks of transformers are tried with a few tokens
        model = build("model", settings, vocabulary_size=size, columns=COLUMNS)
    found = [settings.num_layers, settings.num_heads, settings.width, settings.context_length, model.num_parameters()]
    assert found == STATED[name]
