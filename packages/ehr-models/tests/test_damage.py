"""Files that were damaged on the way: networks, adapters and trajectories are read the same, or refused in a line."""

import copy

import numpy as np
import pytest
import torch
from ehr_core import config
from ehr_core.errors import FormatError
from ehr_core.formats.vocabulary import Token, Vocabulary
from ehr_core.testing.corruption import check_reader
from ehr_models import load_model
from ehr_models.adapters import load, save, wrap
from ehr_models.generation.engine import Engine
from ehr_models.generation.folder import Trajectories, draw_into, finished
from ehr_models.generation.rows import Prompt
from ehr_models.generation.settings import GenerationConfig
from safetensors.torch import load_file, save_file

from .parts import objective_of


def test_an_adapter_with_its_head(model, tmp_path):
    adapted, head = wrap(copy.deepcopy(model), config.preset("adapter", "lora")), objective_of("classification", 32)
    save(adapted, tmp_path / "whole", head)

    def read(path):
        again = objective_of("classification", 32)
        return dict(load(copy.deepcopy(model), path, again).state_dict()), dict(again.state_dict())

    check_reader(read, tmp_path / "whole", tmp_path / "s", times=1, files="[ao]*")


def test_trajectories(model, tmp_path):
    vocabulary = Vocabulary.build([Token(f"CODE//{index}", "code") for index in range(93)])
    engine = Engine(model, vocabulary, GenerationConfig(draws=3, max_new_tokens=5, rows=4))
    prompts = [Prompt(subject, 10**15, np.arange(7, 12), 2) for subject in range(4)]
    draw_into(tmp_path / "whole", engine, prompts, part_rows=3)

    def read(path):
        found = Trajectories(path)
        return found.settings, found.vocabulary_digest, found.table(), len(found), finished(path)

    check_reader(
        read,
        tmp_path / "whole",
        tmp_path / "s",
        times=4,
        files="*.parquet",
        skip=["deleted", "the content of another file"],
    )
    check_reader(read, tmp_path / "whole", tmp_path / "s", times=4, files="*.json")


def test_a_network_with_a_tensor_missing_is_refused_and_not_filled_with_random_numbers(model, tmp_path):
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for damage in (
        lambda w: w.pop(min(w)),
        lambda w: w.update(more=torch.ones(1)),
        lambda w: w.update({min(w): torch.ones(3)}),
    ):
        changed = dict(weights)
        damage(changed)
        save_file(changed, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(FormatError, match=r"differ in \d tensors|holds no model that can be read") as error:
            load_model(tmp_path)
        assert "\n" not in str(error.value)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert load_model(tmp_path).state_dict().keys() == model.state_dict().keys()
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(FormatError, match="holds no model that can be read"):
        load_model(tmp_path)
