"""Logistic regression for binary outcomes, classes (softmax) and several labels (one model each).

Shapes: N samples, F features, C columns, K classes or labels.
"""

import warnings
from pathlib import Path

import numpy as np
from ehr_core.outcomes import MULTICLASS, MULTILABEL, Question
from ehr_core.protocols import Features

from ehr_eval.baselines.columns import Columns, check_positive, load, save
from ehr_eval.settings import LogisticConfig


class Logistic:
    """L2-penalised; the penalty is the one with the lowest log loss on tuning."""

    def __init__(self, settings: LogisticConfig):
        check_positive("logistic.strengths", settings.strengths, settings.clip_quantile)
        self.settings = settings
        self.columns = Columns(settings.clip_quantile)

    def fit(self, question: Question, train: Features, tuning: Features) -> None:
        """Fit on train; a label is learned from the samples that know it."""
        self.kind = question.kind
        self.columns.fit(train.value_NF)
        column_NC, column_MC = self.columns(train.value_NF), self.columns(tuning.value_NF)
        if self.kind == MULTICLASS:
            weight_KC, bias_K = self._classes(question.num_outputs, column_NC, train.label, column_MC, tuning.label)
        elif self.kind == MULTILABEL:
            fits = [
                self._binary(column_NC, train.label[:, k], column_MC, tuning.label[:, k])
                for k in range(question.num_outputs)
            ]
            weight_KC, bias_K = np.stack([weight for weight, _ in fits]), np.array([bias for _, bias in fits])
        else:
            weight_C, bias = self._binary(column_NC, train.label, column_MC, tuning.label)
            weight_KC, bias_K = weight_C[None], np.array([bias])
        self.weight_KC, self.bias_K = weight_KC, bias_K

    def predict(self, value_NF: np.ndarray) -> np.ndarray:
        """Probabilities in the shape of the kind."""
        logit_NK = self.columns(value_NF) @ self.weight_KC.T + self.bias_K
        if self.kind == MULTICLASS:
            power_NK = np.exp(logit_NK - logit_NK.max(axis=1, keepdims=True))
            return np.asarray(power_NK / power_NK.sum(axis=1, keepdims=True))
        probability_NK = np.exp(-np.logaddexp(0.0, -logit_NK))
        return np.asarray(probability_NK if self.kind == MULTILABEL else probability_NK[:, 0])

    def save(self, folder: Path) -> None:
        """Write arrays."""
        save(folder, self.columns, weight_KC=self.weight_KC, bias_K=self.bias_K)

    def load(self, folder: Path, question: Question) -> None:
        """Read back what `save` wrote."""
        self.kind = question.kind
        self.weight_KC, self.bias_K = load(folder, self.columns, "weight_KC", "bias_K")

    def _binary(
        self, column_NC: np.ndarray, label_N: np.ndarray, column_MC: np.ndarray, label_M: np.ndarray
    ) -> tuple[np.ndarray, float]:
        """Weights and bias of one yes-or-no question; rows whose label is NaN are left out."""
        known_N, known_M = ~np.isnan(label_N), ~np.isnan(label_M)
        label_N = label_N[known_N]
        positive = label_N.sum()
        if not 0 < positive < len(label_N):  # one class: its share, drawn a little to the middle
            return np.zeros(column_NC.shape[1]), float(np.log((positive + 0.5) / (len(label_N) - positive + 0.5)))
        weight_KC, bias_K = self._best(column_NC[known_N], label_N, column_MC[known_M], label_M[known_M])
        return weight_KC[0], float(bias_K[0])

    def _classes(
        self, count: int, column_NC: np.ndarray, label_N: np.ndarray, column_MC: np.ndarray, label_M: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Weights (K, C) and biases (K,); a class that train does not have gets no probability."""
        there = np.unique(label_N).astype(np.int64)
        weight_KC, bias_K = np.zeros((count, column_NC.shape[1])), np.full(count, -np.inf)
        known_M = np.isin(label_M, there)
        place_N, place_M = np.searchsorted(there, label_N), np.searchsorted(there, label_M[known_M])
        found_KC, found_K = self._best(column_NC, place_N, column_MC[known_M], place_M)
        if len(there) == 2:  # one logit stands for both
            found_KC, found_K = np.concatenate([-found_KC, found_KC]) / 2, np.concatenate([-found_K, found_K]) / 2
        weight_KC[there], bias_K[there] = found_KC, found_K
        return weight_KC, bias_K

    def _best(
        self, column_NC: np.ndarray, label_N: np.ndarray, column_MC: np.ndarray, label_M: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Weights and biases of the penalty that tuning likes best (the middle one without tuning).

        Penalties are tried from the strongest down, each from the solution of the one before, until two in a row are
        worse than the best.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        strengths = sorted(self.settings.strengths)
        if not len(label_M):
            strengths = [strengths[len(strengths) // 2]]
        model = LogisticRegression(max_iter=self.settings.max_iter, warm_start=True)
        best, worse = np.inf, 0
        for strength in strengths:
            model.set_params(C=strength)
            with warnings.catch_warnings():
                # A fit that stops early is one more candidate; the tuning split judges it.
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(column_NC, label_N)
            weight_KC, bias_K = model.coef_.astype(np.float64), model.intercept_.astype(np.float64)
            loss = _log_loss(label_M, column_MC @ weight_KC.T + bias_K) if len(label_M) else 0.0
            worse = 0 if loss < best else worse + 1
            if not worse:
                best, self.strength, kept = loss, strength, (weight_KC, bias_K)
            elif worse == 2:
                break
        return kept


def _log_loss(label_N: np.ndarray, logit_NK: np.ndarray) -> float:
    """Mean negative log likelihood of logits: of the positive class (one column), or of each class."""
    if logit_NK.shape[1] == 1:
        return float(np.mean(np.logaddexp(0.0, np.where(label_N > 0, -logit_NK[:, 0], logit_NK[:, 0]))))
    own_N = np.take_along_axis(logit_NK, label_N[:, None].astype(np.int64), axis=1)[:, 0]
    return float(np.mean(np.logaddexp.reduce(logit_NK, axis=1) - own_N))
