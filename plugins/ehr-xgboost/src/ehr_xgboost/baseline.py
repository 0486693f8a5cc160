"""Gradient-boosted trees (Chen and Guestrin 2016). A value that was not measured stays NaN: a split sends it aside.

Shapes: N samples, F features, K classes or labels.
"""

from pathlib import Path
from typing import Any

import numpy as np
import xgboost
from ehr_core.errors import ConfigError
from ehr_core.outcomes import BINARY, MULTICLASS, MULTILABEL, REGRESSION, SURVIVAL, Question
from ehr_core.protocols import Features

from ehr_xgboost.plugin import XGBoostConfig

LOSSES: dict[str, tuple[str, str]] = {
    BINARY: ("binary:logistic", "logloss"),
    MULTICLASS: ("multi:softprob", "mlogloss"),
    MULTILABEL: ("binary:logistic", "logloss"),
    REGRESSION: ("reg:squarederror", "rmse"),
    SURVIVAL: ("survival:cox", "cox-nloglik"),
}
"""Kind of outcome to xgboost's objective and the metric that the tuning split is watched with."""


class XGBoost:
    """One ensemble of trees, or one a label; the number of trees is chosen on the tuning split."""

    def __init__(self, settings: XGBoostConfig):
        for name in ("max_depth", "learning_rate", "num_rounds", "early_stopping_rounds"):
            if getattr(settings, name) <= 0:
                raise ConfigError(f"predictors.xgboost.{name} must be above 0")
        for name in ("subsample", "colsample"):
            if not 0 < getattr(settings, name) <= 1:
                raise ConfigError(f"predictors.xgboost.{name} must be above 0 and at most 1")
        self.settings = settings
        self.models: list[xgboost.Booster] = []

    def fit(self, question: Question, train: Features, tuning: Features) -> None:
        """Fit on train. Without a tuning sample all ``num_rounds`` trees are grown."""
        self.question = question
        labels, watched = _targets(question.kind, train.label), _targets(question.kind, tuning.label)
        self.models = [
            self._grow(train.value_NF, label_N, tuning.value_NF, label_M)
            for label_N, label_M in zip(labels, watched, strict=True)
        ]

    def _grow(
        self, train_NF: np.ndarray, label_N: np.ndarray, tuning_MF: np.ndarray, label_M: np.ndarray
    ) -> xgboost.Booster:
        settings, (objective, metric) = self.settings, LOSSES[self.question.kind]
        parameters: dict[str, Any] = {
            "objective": objective,
            "eval_metric": metric,
            "tree_method": "hist",
            "max_depth": settings.max_depth,
            "learning_rate": settings.learning_rate,
            "subsample": settings.subsample,
            "colsample_bytree": settings.colsample,
            "min_child_weight": settings.min_child_weight,
            "reg_lambda": settings.reg_lambda,
            "nthread": settings.num_threads,
            "seed": settings.seed or 0,
        }
        if self.question.kind == MULTICLASS:
            parameters["num_class"] = self.question.num_outputs
        known_N, known_M = ~np.isnan(label_N), ~np.isnan(label_M)
        train = xgboost.DMatrix(train_NF[known_N], label_N[known_N])
        if not known_M.any():
            return xgboost.train(parameters, train, num_boost_round=settings.num_rounds)
        tuning = xgboost.DMatrix(tuning_MF[known_M], label_M[known_M])
        stop = xgboost.callback.EarlyStopping(rounds=settings.early_stopping_rounds, save_best=True)
        return xgboost.train(
            parameters,
            train,
            num_boost_round=settings.num_rounds,
            evals=[(tuning, "tuning")],
            callbacks=[stop],
            verbose_eval=False,
        )

    def predict(self, value_NF: np.ndarray) -> np.ndarray:
        """Predictions in the shape of the kind; the risk of a survival outcome is the log of the hazard ratio."""
        found = [model.predict(xgboost.DMatrix(value_NF)).astype(np.float64) for model in self.models]
        if self.question.kind == MULTILABEL:
            return np.stack(found, axis=1)
        if self.question.kind == MULTICLASS:
            return np.asarray(found[0] / found[0].sum(axis=1, keepdims=True))
        # A hazard ratio of float32 may overflow for a sample far outside of train.
        return np.log(found[0].clip(1e-30, 1e30)) if self.question.kind == SURVIVAL else found[0]

    def save(self, folder: Path) -> None:
        """Write each ensemble as ``trees_K.ubj``, in xgboost's own form, which holds numbers alone."""
        for number, model in enumerate(self.models):
            model.save_model(folder / f"trees_{number}.ubj")

    def load(self, folder: Path, question: Question) -> None:
        """Read back what `save` wrote."""
        self.question = question
        count = question.num_outputs if question.kind == MULTILABEL else 1
        self.models = [xgboost.Booster(model_file=folder / f"trees_{number}.ubj") for number in range(count)]


def _targets(kind: str, label: np.ndarray) -> list[np.ndarray]:
    """Labels (N,) float32 as xgboost has them, one array an ensemble: a censored time is negative; NaN is not known."""
    if kind == MULTILABEL:
        return list(label.T.astype(np.float32))
    if kind == SURVIVAL:  # a time of 0 has no sign
        return [(np.maximum(label[:, 0], 1e-6) * np.where(label[:, 1] > 0, 1, -1)).astype(np.float32)]
    return [label.astype(np.float32)]
