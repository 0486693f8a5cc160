"""The outcomes of the synthetic cohort can be learnt: boosted trees on simple features come close to the truth."""

import numpy as np
import polars as pl
import pytest
from ehr_tokenize.synthetic import SyntheticConfig
from ehr_tokenize.synthetic.events import draw_shard

SETTINGS = SyntheticConfig()
ROLES = {"train": (0, 4000), "tuning": (1, 500), "held_out": (2, 4000)}


def features(shard, task: str) -> tuple[pl.DataFrame, np.ndarray, np.ndarray]:
    """Per code: count, and last, min, max and mean of the values up to the prediction time, over the whole history."""
    labels = pl.from_arrow(shard.labels[task]).with_row_index("row")
    rows = labels.join(pl.from_arrow(shard.data), on="subject_id").filter(pl.col("time") <= pl.col("prediction_time"))
    birth = rows.filter(pl.col("code") == "MEDS_BIRTH")
    born = birth.select("row", age=(pl.col("prediction_time") - pl.col("time")).dt.total_days())
    value = pl.col("numeric_value")
    each = rows.group_by("row", "code", maintain_order=True).agg(
        count=pl.len().cast(pl.Float32), last=value.last(), low=value.min(), high=value.max(), mean=value.mean()
    )
    wide = labels.select("row").join(born, on="row")
    for name in ("count", "last", "low", "high", "mean"):
        part = each.filter(pl.col(name).is_not_null()).pivot(on="code", index="row", values=name)
        wide = wide.join(part.rename(lambda c, n=name: c if c == "row" else f"{n} {c}"), on="row", how="left")
    wide = wide.sort("row").drop("row").with_columns(pl.col("^count .*$").fill_null(0))
    return wide, labels["boolean_value"].to_numpy(), labels["true_probability"].to_numpy()


def expected_auroc(score: np.ndarray, p: np.ndarray) -> float:
    """AUROC of a score over labels that occur with probability p: the luck of one draw of labels is taken out."""
    p = p[np.argsort(score, kind="stable")]
    below = np.cumsum(1 - p) - (1 - p)
    return float((p * below).sum() / (p.sum() * (1 - p).sum()))


@pytest.mark.slow
@pytest.mark.parametrize(("task", "share"), [("in_hospital_mortality", 0.92), ("readmission_30d", 0.85)])
def test_boosted_trees_get_most_of_the_way_to_the_ceiling(task, share):
    xgboost = pytest.importorskip("xgboost", reason="xgboost is not installed")
    found = {role: features(draw_shard(SETTINGS, index, n, 1), task) for role, (index, n) in ROLES.items()}
    columns = found["train"][0].columns
    data = {
        role: wide.select(
            [pl.col(c) if c in wide.columns else pl.lit(None, pl.Float32).alias(c) for c in columns]
        ).to_numpy()
        for role, (wide, _, _) in found.items()
    }
    model = xgboost.XGBClassifier(
        n_estimators=500, max_depth=3, learning_rate=0.05, colsample_bytree=0.4, subsample=0.8, n_jobs=2,
        early_stopping_rounds=30, eval_metric="logloss", random_state=0,
    )  # fmt: skip
    tuning = [(data["tuning"], found["tuning"][1])]
    model.fit(data["train"], found["train"][1], eval_set=tuning, verbose=False)
    truth = found["held_out"][2]
    score = model.predict_proba(data["held_out"])[:, 1]
    ceiling = expected_auroc(truth, truth)
    reached = (expected_auroc(score, truth) - 0.5) / (ceiling - 0.5)
    print(f"{task}: ceiling {ceiling:.3f}, {reached:.1%} of the way")
    assert reached > share
