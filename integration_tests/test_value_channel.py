"""The continuous channel: a number in a record reaches the model's batch, at its code's token and nowhere else."""

import numpy as np
import polars as pl
import pytest
import torch
from ehr_core.batch import Batch
from ehr_core.cli import run
from ehr_core.formats.tokens import TokenStore
from ehr_core.plugins import build, registry
from ehr_core.testing.tiny import write_tiny_meds
from ehr_train.loader.windows import Windows


@pytest.fixture(scope="module")
def meds(tmp_path_factory):
    return write_tiny_meds(tmp_path_factory.mktemp("value") / "meds")


def batches(store, context):
    rows = Windows(store, "train", context, seed=0).evaluation()
    return [rows.batch(np.array([row])) for row in range(len(rows))]


@pytest.mark.parametrize("tokenizer", ["ethos", "behrt"])
def test_numbers_reach_the_batch_at_the_tokens_of_their_codes(meds, tmp_path, tokenizer):
    settings = [f"tokenizer={tokenizer}", "tokenizer.value=true", "tokenizer.min_count=1"]
    run("ehr-tokenize", "tokenize", ["source=meds", f"source.path={meds}", *settings, f"output={tmp_path}/store"])
    store = TokenStore(tmp_path / "store")
    names = np.array([token.token for token in store.vocabulary.tokens])
    found: dict[str, list[float]] = {}
    for batch in batches(store, 64):
        token, value = names[batch.token_BT.numpy()], batch.columns["value"].numpy()
        assert value.dtype == np.float32
        nowhere = (batch.segment_BT == 0).numpy() | batch.static_BT.numpy()
        assert np.isnan(value[nowhere]).all()
        for name, number in zip(token[~np.isnan(value)].tolist(), value[~np.isnan(value)].tolist(), strict=True):
            found.setdefault(name, []).append(number)
    events = pl.concat([pl.read_parquet(path) for path in sorted((meds / "data" / "train").glob("*.parquet"))])
    timed = events.filter(pl.col("time").is_not_null() & pl.col("numeric_value").is_not_null())
    expected = {code: part["numeric_value"].to_list() for (code,), part in timed.group_by("code")}
    assert {code: sorted(numbers) for code, numbers in found.items()} == {
        code: sorted(numbers) for code, numbers in expected.items()
    }
    assert set(expected) == {"LAB//glucose//mg/dL", "LAB//lactate//mmol/L"}


def test_a_model_of_tokens_learns_as_well_with_the_channel_beside_them(meds, tmp_path):
    run(
        "ehr-tokenize",
        "tokenize",
        ["source=meds", f"source.path={meds}", "tokenizer.value=true", f"output={tmp_path}/store"],
    )
    store = TokenStore(tmp_path / "store")
    settings = registry().get("model", "gpt").config(num_layers=1, width=32, num_heads=2, context_length=64)
    torch.manual_seed(0)
    model = build("model", settings, vocabulary_size=len(store.vocabulary), columns=store.columns)
    objective = build(
        "objective",
        registry().get("objective", "next_token").config(),
        width=32,
        vocabulary=store.vocabulary,
        question=None,
    )
    batch = batches(store, 64)[0]
    assert store.columns == ["value"]
    loss = objective.loss(model, batch)
    plain = objective.loss(model, Batch(batch.token_BT, batch.position_BT, batch.segment_BT, batch.static_BT))
    assert torch.isfinite(loss.total)
    assert torch.equal(loss.total, plain.total)
