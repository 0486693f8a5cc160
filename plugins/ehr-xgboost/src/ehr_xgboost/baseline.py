"""Gradient-boosted trees (Chen and Guestrin 2016). A value that was not measured stays NaN: a split sends it aside."""

import numpy as np
import xgboost
from ehr_core.errors import ConfigError

from ehr_xgboost.plugin import XGBoostConfig


class XGBoost:
    """Binary log loss, the number of trees chosen on the tuning split."""

    def __init__(self, settings: XGBoostConfig):
        for name in ("max_depth", "learning_rate", "num_rounds", "early_stopping_rounds"):
            if getattr(settings, name) <= 0:
                raise ConfigError(f"predictors.xgboost.{name} must be above 0")
        for name in ("subsample", "colsample"):
            if not 0 < getattr(settings, name) <= 1:
                raise ConfigError(f"predictors.xgboost.{name} must be above 0 and at most 1")
        self.settings = settings

    def fit(self, train_NF: np.ndarray, label_N: np.ndarray, tuning_MF: np.ndarray, tuning_M: np.ndarray) -> None:
        """Fit on train. Without a tuning sample all ``num_rounds`` trees are grown."""
        settings = self.settings
        parameters = {
            "objective": "binary:logistic",
            "eval_metric": "logloss",
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
        train = xgboost.DMatrix(train_NF, label_N.astype(np.float32))
        if not len(tuning_M):
            self.model = xgboost.train(parameters, train, num_boost_round=settings.num_rounds)
            return
        tuning = xgboost.DMatrix(tuning_MF, tuning_M.astype(np.float32))
        stop = xgboost.callback.EarlyStopping(rounds=settings.early_stopping_rounds, save_best=True)
        self.model = xgboost.train(
            parameters,
            train,
            num_boost_round=settings.num_rounds,
            evals=[(tuning, "tuning")],
            callbacks=[stop],
            verbose_eval=False,
        )

    def predict_proba(self, features_NF: np.ndarray) -> np.ndarray:
        """Probability (N,) of the positive class."""
        return self.model.predict(xgboost.DMatrix(features_NF)).astype(np.float64)
