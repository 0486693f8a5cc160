import dataclasses
import itertools

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from ehr_core.constants import DAY_US
from ehr_core.errors import DataError, FormatError
from ehr_core.formats.intervals import Interval, Intervals
from ehr_core.formats.vocabulary import Token, Vocabulary
from ehr_models.adapter_settings import AdapterConfig
from ehr_models.adapters import wrap
from ehr_models.generation import folder as folders
from ehr_models.generation.engine import Engine
from ehr_models.generation.folder import Trajectories, draw_into, generate
from ehr_models.generation.rows import Prompt
from ehr_models.generation.settings import GenerationConfig
from peft.tuners.lora import LoraLayer

VOCABULARY = Vocabulary.build([Token(f"CODE//{index}", "code") for index in range(93)])


@pytest.fixture
def prompts():
    random = np.random.default_rng(0)
    return [Prompt(subject, 10**15 + subject, random.integers(7, 100, 9), 2) for subject in range(6)]


def engine(model, **settings):
    return Engine(model, VOCABULARY, GenerationConfig(**{"draws": 3, "max_new_tokens": 5, "rows": 4} | settings))


def test_trajectories_come_back_from_their_folder(model, prompts, tmp_path):
    made = engine(model)
    draw_into(tmp_path / "out", made, prompts)
    table = Trajectories(tmp_path / "out").table()
    assert table.schema == folders.SCHEMA
    expected = sorted(made.generate(prompts), key=lambda one: (one.subject_id, one.draw))
    assert table["tokens"].to_pylist() == [one.tokens.tolist() for one in expected]
    assert table["subject_id"].to_pylist() == [one.subject_id for one in expected]
    assert table["draw"].to_pylist() == [0, 1, 2] * 6
    assert table["stop_reason"].to_pylist() == ["budget"] * 18
    assert table["prediction_time"].cast("int64").to_pylist() == [one.time for one in expected]


def test_work_goes_on_after_a_kill_and_gives_the_same(model, prompts, tmp_path):
    made = engine(model)
    draw_into(tmp_path / "whole", made, prompts)
    killed = Engine.generate

    class Killed(Exception):
        pass

    class Mortal(Engine):
        def generate(self, asked):
            yield from itertools.islice(killed(self, asked), 11)
            raise Killed

    mortal = Mortal(model, VOCABULARY, made.settings)
    with pytest.raises(Killed):
        draw_into(tmp_path / "out", mortal, prompts, part_rows=3)
    before = {path: path.read_bytes() for path in folders.parts(tmp_path / "out")}
    assert len(before) >= 2
    asked = []
    draw_into(tmp_path / "out", made, (asked.append(p) or p for p in prompts), part_rows=3)
    assert Trajectories(tmp_path / "out").table().equals(Trajectories(tmp_path / "whole").table())
    assert all(path.read_bytes() == content for path, content in before.items())
    drawn = sum(len(pq.read_table(path)) for path in folders.parts(tmp_path / "out") if path not in before)
    assert drawn == 18 - 3 * len(before)


def test_a_finished_folder_is_not_drawn_again(model, prompts, tmp_path):
    draw_into(tmp_path, engine(model), prompts)
    files = folders.parts(tmp_path)
    draw_into(tmp_path, engine(model, rows=64), prompts)
    draw_into(tmp_path, engine(model), [dataclasses.replace(p, tokens=p.tokens.tolist()) for p in prompts])
    assert folders.parts(tmp_path) == files


@pytest.mark.parametrize("tokens", [slice(None), slice(1, None)])
def test_two_prompts_of_one_subject_and_time_are_refused(model, prompts, tmp_path, tokens):
    again = dataclasses.replace(prompts[1], tokens=prompts[1].tokens[tokens])
    with pytest.raises(DataError, match="prompt 3 has the subject and time of an earlier one") as raised:
        draw_into(tmp_path, engine(model), [*prompts[:3], again])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("change", [{"tokens": np.arange(7, 16)}, {"prefix": 1}])
def test_a_prompt_that_differs_from_what_was_drawn_from_is_refused(model, prompts, tmp_path, change):
    draw_into(tmp_path, engine(model), prompts)
    before = Trajectories(tmp_path).table()
    with pytest.raises(FormatError, match="for the subject and time of prompt 2 from other tokens") as raised:
        draw_into(tmp_path, engine(model), [*prompts[:2], dataclasses.replace(prompts[2], **change)])
    assert "\n" not in str(raised.value)
    assert Trajectories(tmp_path).table().equals(before)


def test_a_lost_part_is_drawn_again_and_no_other_is_overwritten(model, prompts, tmp_path):
    draw_into(tmp_path, engine(model), prompts, part_rows=3)
    whole, files = Trajectories(tmp_path).table(), folders.parts(tmp_path)
    assert len(files) == 6
    files.pop(0).unlink()
    kept = [path.read_bytes() for path in files]
    draw_into(tmp_path, engine(model), prompts, part_rows=3)
    assert [path.read_bytes() for path in files] == kept
    assert Trajectories(tmp_path).table().equals(whole)


def test_a_part_with_other_columns_is_one_clear_error(model, prompts, tmp_path):
    draw_into(tmp_path, engine(model), prompts)
    (path,) = folders.parts(tmp_path)
    pq.write_table(pq.read_table(path).drop_columns("prompt"), path)
    for use in (lambda folder: Trajectories(folder).table(), lambda folder: draw_into(folder, engine(model), prompts)):
        with pytest.raises(FormatError, match="no trajectories with the columns") as raised:
            use(tmp_path)
        assert "\n" not in str(raised.value)


def test_a_folder_of_other_settings_or_weights_is_refused(model, prompts, tmp_path):
    draw_into(tmp_path, engine(model), prompts[:1])
    with pytest.raises(FormatError, match="begun with other settings"):
        draw_into(tmp_path, engine(model, seed=1), prompts)
    with torch.no_grad():
        model.norm.weight[0] += 1
    with pytest.raises(FormatError, match="begun with other weights"):
        draw_into(tmp_path, engine(model), prompts)


@pytest.fixture
def adapted(model):
    """A network with adapters one and two, each with a token table of its own; one is in use."""
    for name in ("one", "two"):
        model = wrap(model, AdapterConfig(dora=name == "two", embeddings=True), name=name)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "lora_" in key or "modules_to_save" in key:
                weight.add_(torch.randn_like(weight))
    model.set_adapter("one")
    return model


def test_a_folder_of_another_adapter_in_use_is_refused(adapted, prompts, tmp_path):
    draw_into(tmp_path, engine(adapted), prompts[:1])
    adapted.set_adapter("two")
    with pytest.raises(FormatError, match="begun with other adapters, weights"):
        draw_into(tmp_path, engine(adapted), prompts)
    with adapted.disable_adapter(), pytest.raises(FormatError, match="begun with other adapters, weights"):
        draw_into(tmp_path, engine(adapted), prompts)
    adapted.set_adapter("one")
    draw_into(tmp_path, engine(adapted), prompts)
    assert len(Trajectories(tmp_path).table()) == 18


def scaled(model):
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.set_scale("one", 3.0)


def tensors(*words):
    """Changes all tensors that have these words in their names."""

    def change(model):
        found = [value for key, value in model.state_dict().items() if all(word in key for word in words)]
        assert found
        for value in found:
            value.add_(1)

    return change


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (tensors("lora_A.one."), True),
        (tensors("modules_to_save.one."), True),
        (tensors("norm"), True),
        (scaled, True),
        (tensors("lora_A.two."), False),
        (tensors("lora_magnitude_vector.two."), False),
        (tensors("modules_to_save.two."), False),
        (lambda model: model.delete_adapter("two"), False),
    ],
)
def test_what_acts_decides_and_idle_adapters_do_not(adapted, prompts, tmp_path, change, counts):
    draw_into(tmp_path, engine(adapted), prompts[:1])
    change(adapted)
    if counts:
        with pytest.raises(FormatError, match="begun with other weights"):
            draw_into(tmp_path, engine(adapted), prompts)
    else:
        draw_into(tmp_path, engine(adapted), prompts)


def test_nothing_of_a_subject_is_printed(model, prompts, tmp_path, capsys, caplog):
    draw_into(tmp_path, engine(model), prompts)
    assert capsys.readouterr().out == ""
    assert caplog.text == ""


def test_one_call_draws_goes_on_and_opens_what_was_drawn(model, prompts, tmp_path):
    intervals = Intervals({"CODE//5": Interval(86_400.0, 0.5, 2.0)})
    settings = GenerationConfig(draws=3, max_new_tokens=40, horizon_days=2.0, rows=4)
    first = generate(model, VOCABULARY, prompts[:2], settings, intervals, tmp_path / "out")
    assert len(first) == 6
    found = generate(model, VOCABULARY, prompts, settings, intervals, tmp_path / "out")
    assert len(found) == 18
    assert found.settings == dataclasses.replace(settings, rows=64)
    assert found.vocabulary_digest == VOCABULARY.digest
    assert sum(len(table) for table in found.tables()) == 18
    table, day = found.table(), VOCABULARY["CODE//5"]
    days = [tokens.count(day) for tokens in table["tokens"].to_pylist()]
    assert table["elapsed_seconds"].to_pylist() == [86_400.0 * number for number in days]
    assert [reason == "horizon" for reason in table["stop_reason"].to_pylist()] == [number == 3 for number in days]


def test_the_horizon_counts_from_the_prediction_time_and_not_from_the_newest_event(model, prompts, tmp_path):
    intervals = Intervals({f"CODE//{code}": Interval(86_400.0, 0.5, 2.0) for code in range(30)})
    settings = GenerationConfig(draws=4, max_new_tokens=200, horizon_days=2.0)
    late = [dataclasses.replace(prompt, last_time=prompt.time - 5 * DAY_US) for prompt in prompts]
    at_once = generate(model, VOCABULARY, prompts, settings, intervals, tmp_path / "at_once").table()
    waited = generate(model, VOCABULARY, late, settings, intervals, tmp_path / "waited").table()
    assert set(at_once["stop_reason"].to_pylist()) == set(waited["stop_reason"].to_pylist()) == {"horizon"}
    # Both end on the third day after the prediction time; five more days pass before it where the record is older.
    for table, passed in ((at_once, 0), (waited, 5)):
        assert set(table["elapsed_seconds"].to_pylist()) == {3 * 86_400.0}
        for tokens in table["tokens"].to_pylist():
            assert sum(token - 7 < 30 for token in tokens) == 3 + passed
    for one, other in zip(at_once["tokens"].to_pylist(), waited["tokens"].to_pylist(), strict=True):
        assert other[: len(one)] == one
    late = [dataclasses.replace(prompts[0], last_time=prompts[0].time + 1)]
    with pytest.raises(DataError, match="newest event of a prompt is later than its prediction time"):
        generate(model, VOCABULARY, late, settings, intervals, tmp_path / "never")


def test_a_folder_that_holds_something_else_is_refused(model, prompts, tmp_path):
    (tmp_path / "letters.txt").write_text("not ours")
    with pytest.raises(FormatError, match="exists already; give another output"):
        draw_into(tmp_path, engine(model), prompts)
    with pytest.raises(FormatError, match=r"generation\.json is missing"):
        Trajectories(tmp_path)
    (tmp_path / "generation.json").write_text("{}")
    with pytest.raises(FormatError, match=r"generation\.json: \$: object missing"):
        Trajectories(tmp_path)
