import itertools

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from ehr_core.errors import FormatError
from ehr_core.formats.vocabulary import Token, Vocabulary
from ehr_models.generation import folder as folders
from ehr_models.generation.engine import Engine, interval_seconds
from ehr_models.generation.folder import generate_into, read
from ehr_models.generation.rows import Prompt
from ehr_models.generation.settings import GenerationConfig

VOCABULARY = Vocabulary.build([Token(f"CODE//{index}", "code") for index in range(93)])


@pytest.fixture
def prompts():
    random = np.random.default_rng(0)
    return [Prompt(subject, 10**15 + subject, random.integers(7, 100, 9), 2) for subject in range(6)]


def engine(model, **settings):
    return Engine(model, VOCABULARY, GenerationConfig(**{"draws": 3, "max_new_tokens": 5, "rows": 4} | settings))


def test_trajectories_come_back_from_their_folder(model, prompts, tmp_path):
    made = engine(model)
    generate_into(tmp_path / "out", made, prompts)
    table = read(tmp_path / "out")
    assert table.schema == folders.SCHEMA
    expected = sorted(made.generate(prompts), key=lambda one: (one.subject_id, one.draw))
    assert table["tokens"].to_pylist() == [one.tokens.tolist() for one in expected]
    assert table["subject_id"].to_pylist() == [one.subject_id for one in expected]
    assert table["draw"].to_pylist() == [0, 1, 2] * 6
    assert table["stop_reason"].to_pylist() == ["budget"] * 18
    assert table["prediction_time"].cast("int64").to_pylist() == [one.time for one in expected]


def test_work_goes_on_after_a_kill_and_gives_the_same(model, prompts, tmp_path):
    made = engine(model)
    generate_into(tmp_path / "whole", made, prompts)
    killed = Engine.generate

    class Killed(Exception):
        pass

    class Mortal(Engine):
        def generate(self, asked):
            yield from itertools.islice(killed(self, asked), 11)
            raise Killed

    mortal = Mortal(model, VOCABULARY, made.settings)
    with pytest.raises(Killed):
        generate_into(tmp_path / "out", mortal, prompts, part_rows=3)
    before = {path: path.read_bytes() for path in folders.parts(tmp_path / "out")}
    assert len(before) >= 2
    asked = []
    generate_into(tmp_path / "out", made, (asked.append(p) or p for p in prompts), part_rows=3)
    assert read(tmp_path / "out").equals(read(tmp_path / "whole"))
    assert all(path.read_bytes() == content for path, content in before.items())
    drawn = sum(len(pq.read_table(path)) for path in folders.parts(tmp_path / "out") if path not in before)
    assert drawn == 18 - 3 * len(before)


def test_a_finished_folder_is_not_drawn_again_and_a_prompt_given_twice_is_drawn_once(model, prompts, tmp_path):
    generate_into(tmp_path, engine(model), [*prompts, *prompts])
    assert len(read(tmp_path)) == 18
    files = folders.parts(tmp_path)
    generate_into(tmp_path, engine(model, rows=64), prompts)
    assert folders.parts(tmp_path) == files


def test_a_folder_of_other_settings_or_weights_is_refused(model, prompts, tmp_path):
    generate_into(tmp_path, engine(model), prompts[:1])
    with pytest.raises(FormatError, match="begun with other settings"):
        generate_into(tmp_path, engine(model, seed=1), prompts)
    with torch.no_grad():
        model.norm.weight[0] += 1
    with pytest.raises(FormatError, match="begun with other weights"):
        generate_into(tmp_path, engine(model), prompts)


def test_nothing_of_a_subject_is_printed(model, prompts, tmp_path, capsys, caplog):
    generate_into(tmp_path, engine(model), prompts)
    assert capsys.readouterr().out == ""
    assert caplog.text == ""


def test_estimates_are_read_from_a_fitted_tokenizer(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text('{"name": "ethos", "settings": {}, "state": {"interval_estimates": {"1h-2h": 5000.5}}}')
    assert interval_seconds(tmp_path) == {"1h-2h": 5000.5}
    path.write_text('{"name": "fms", "settings": {}, "state": {}}')
    assert interval_seconds(tmp_path) == {}
