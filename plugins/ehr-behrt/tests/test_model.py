"""The network of BEHRT: sizes as published in code, and what it reads."""

import pytest
import torch
from ehr_behrt.plugin import BehrtModelConfig
from ehr_core import config
from ehr_core.plugins import build

COLUMNS = ["age_days", "visit", "segment"]


@pytest.mark.parametrize(
    ("name", "network", "with_head", "shape"),
    [
        ("behrt_small", 506_624, 652_392, (64, 128, 2, 4, 50)),
        ("behrt_medium", 3_401_984, 3_725_288, (128, 256, 4, 8, 100)),
        ("behrt_large", 19_491_328, 20_268_008, (256, 512, 6, 8, 200)),
    ],
)
def test_presets_have_the_parameters_of_the_published_code(name, network, with_head, shape):
    settings = config.preset("model", name, "model.vocabulary_multiple=8")
    model = build("model", settings, vocabulary_size=1000, columns=COLUMNS)
    s = settings
    assert (s.embedding_width, s.width, s.num_layers, s.num_heads, s.context_length) == shape
    assert model.num_parameters() == with_head
    assert with_head - sum(weight.numel() for weight in model.head.parameters()) == network
    # Rows are padded to a multiple of 64 unless told otherwise: 24 more, in the table and in the output layer.
    padded = build("model", config.preset("model", name), vocabulary_size=1000, columns=COLUMNS)
    assert padded.num_parameters() == with_head + 24 * (s.embedding_width + s.width)


def test_age_and_visit_are_read_and_segments_when_asked_for():
    torch.manual_seed(0)
    settings = config.preset("model", "behrt_small", "model.columns.segment.size=3", "model.dropout=0")
    model = build("model", settings, vocabulary_size=100, columns=COLUMNS).eval()
    token = torch.randint(7, 100, (1, 9))
    columns = {"age_days": torch.full((1, 9), 20_000), "visit": torch.ones(1, 9).long(), "segment": token % 2}
    before = model(token, **columns).last_hidden_state
    for name, value in (("age_days", 30_000), ("visit", 5), ("segment", 2)):
        after = model(token, **{**columns, name: torch.full((1, 9), value)}).last_hidden_state
        assert not torch.allclose(after, before, atol=1e-3)
    assert list(BehrtModelConfig().columns) == COLUMNS
    plain = build("model", config.preset("model", "behrt_small"), vocabulary_size=100, columns=COLUMNS)
    assert list(plain.config.columns) == ["age_days", "visit"]


def test_visits_beyond_the_511th_and_ages_beyond_100_share_a_row():
    model = build("model", BehrtModelConfig(), vocabulary_size=100, columns=COLUMNS)
    tables = model.embeddings.columns
    assert tables["visit"].rows(torch.tensor([0, 511, 512, 9000])).tolist() == [0, 511, 511, 511]
    years = torch.tensor([0, 4, 5, 64, 99, 100, 117])
    assert tables["age_days"].rows(years * 366).tolist() == [min(year, 100) // 5 for year in years.tolist()]
