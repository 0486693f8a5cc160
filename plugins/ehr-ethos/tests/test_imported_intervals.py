"""What interval tokens of an imported run stand for: estimates of a file, or the middles of their borders."""

import json

import numpy as np
import pytest
import torch
from ehr_core.errors import FormatError
from ehr_core.formats.intervals import Intervals
from ehr_core.formats.run import Run
from ehr_core.plugins import build
from ehr_ethos.checkpoints import describe, to_theirs
from ehr_ethos.plugin import ImportConfig
from ehr_ethos.runs import import_checkpoint
from ehr_models.generation.engine import Engine
from ehr_models.generation.rows import Prompt
from ehr_models.generation.settings import GenerationConfig
from ehr_models.gpt import GPT
from ehr_models.settings import GPTConfig

TOKENS = ["GENDER//M", "Q1", "5m-15m", "=6mt", "TIMELINE_END", *(f"LAB//{i}" for i in range(59))]


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of EHR_FM with two interval tokens."""
    torch.manual_seed(0)
    settings = GPTConfig(num_layers=1, width=16, num_heads=2, context_length=32)
    model = build("model", settings, vocabulary_size=len(TOKENS), columns=[])
    content = {"model": to_theirs(model.state_dict(), settings), "model_configs": describe(settings)}
    torch.save(content | {"vocab_stoi": {name: i for i, name in enumerate(TOKENS)}}, tmp_path / "best_model.pt")
    return tmp_path / "best_model.pt"


MINUTES = {"5m-15m": 9.0, "=6mt": 190 * 1440.0}


def estimates(folder, **means):
    """A file of ETHOS: microseconds by statistic and token."""
    path = folder / "interval_estimates.json"
    mean = {name: minutes * 60e6 for name, minutes in (MINUTES | means).items() if minutes is not None}
    path.write_text(json.dumps({"min": dict.fromkeys(mean, 1), "mean": mean, "max": dict.fromkeys(mean, 1e15)}))
    return str(path)


@pytest.mark.parametrize(
    ("means", "expected", "middles"),
    [
        (None, {"5m-15m": 600.0, "=6mt": 180 * 86_400.0}, ["5m-15m", "=6mt"]),
        ({}, {"5m-15m": 540.0, "=6mt": 190 * 86_400.0}, []),
        ({"5m-15m": None}, {"5m-15m": 600.0, "=6mt": 190 * 86_400.0}, ["5m-15m"]),
    ],
)
def test_trajectories_of_an_imported_run_end_at_their_horizon(checkpoint, tmp_path, capsys, means, expected, middles):
    file = None if means is None else estimates(tmp_path, **means)
    folder = tmp_path / "run"
    import_checkpoint(ImportConfig(str(checkpoint), str(folder), interval_estimates=file))
    run = Run(folder)
    assert Intervals.load(run.tokenizer).mean_seconds == expected
    assert run.manifest.content["interval_middles"] == middles
    assert ("interval_estimates" in run.manifest.inputs) == (file is not None)
    assert (f"{len(middles)} interval tokens stand for the middles" in capsys.readouterr().out) == bool(middles)

    settings = GenerationConfig(draws=20, horizon_days=400, max_new_tokens=200, never=["code", "quantile", "static"])
    made = Engine(GPT.from_pretrained(run.model), run.vocabulary, settings, Intervals.load(run.tokenizer))
    found = list(made.generate([Prompt(1, 0, np.arange(20), 2)]))
    assert any(one.stop_reason == "horizon" for one in found)
    names = [token.token for token in run.vocabulary.tokens]
    for one in found:
        spans = [expected.get(names[token], 0.0) for token in one.tokens]
        assert one.seconds == sum(spans)
        past = one.seconds > 400 * 86_400
        assert past == (one.stop_reason == "horizon")
        assert sum(spans[:-1]) <= 400 * 86_400


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"5m-15m": 600}', r"\$\.mean: expected `object`, got `null`"),
        ('{"mean": {"1h-2h": 5.4e9}}', "names '1h-2h', which is no interval token"),
        ('{"mean": {"Q1": 5.4e9}}', "names 'Q1', which is no interval token"),
        ('{"mean": {"5m-15m": 600}}', "the mean of '5m-15m' is 600; expected microseconds, about 600000000"),
        ('{"mean": {"5m-15m": NaN}}', "is not readable JSON"),
        ('{"mean": {"5m-15m": null}}', r"\$\.mean\[\.\.\.\]: expected `float`, got `null`"),
        ("{", "is not readable JSON"),
    ],
)
def test_estimates_of_other_tokens_or_units_are_refused(checkpoint, tmp_path, content, message):
    (tmp_path / "interval_estimates.json").write_text(content)
    given = ImportConfig(str(checkpoint), str(tmp_path / "run"))
    given.interval_estimates = str(tmp_path / "interval_estimates.json")
    with pytest.raises(FormatError, match=message) as raised:
        import_checkpoint(given)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()
