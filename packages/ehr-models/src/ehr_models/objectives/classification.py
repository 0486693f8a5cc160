"""``classification``, ``multiclass``, ``multilabel``, ``regression``: heads for labels that are known at once.

Shapes: N samples, O outputs of a head, K classes or labels.
"""

import math

import torch
from ehr_core.errors import ConfigError, DataError
from ehr_core.formats.vocabulary import Vocabulary
from ehr_core.outcomes import BINARY, MULTICLASS, MULTILABEL, REGRESSION, Question
from torch import Tensor, nn
from torch.nn import functional

from ehr_models.objectives.heads import LabelObjective, check_binary, number_of, question_of
from ehr_models.objectives.settings import ClassificationConfig, MulticlassConfig, MultilabelConfig, RegressionConfig


class Classification(LabelObjective):
    """The probability of a binary label; binary cross-entropy."""

    def __init__(self, settings: ClassificationConfig, width: int, vocabulary: Vocabulary, question: Question | None):
        question_of(settings, question, BINARY)
        super().__init__(settings, width, 1)

    def total(self, output_NO: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
        """Over samples."""
        self.check_labels(label_N, (len(output_NO),))
        check_binary("classification", label_N)
        total = functional.binary_cross_entropy_with_logits(output_NO[:, 0], label_N, reduction="sum")
        return total, number_of(label_N)

    def prediction(self, output_NO: Tensor) -> Tensor:
        """(N,): probability of label 1."""
        return output_NO[:, 0].sigmoid()


class Multiclass(LabelObjective):
    """The probabilities of K classes; cross-entropy."""

    def __init__(self, settings: MulticlassConfig, width: int, vocabulary: Vocabulary, question: Question | None):
        super().__init__(settings, width, question_of(settings, question, MULTICLASS).num_outputs)

    def total(self, output_NO: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
        """Over samples."""
        self.check_labels(label_N, (len(output_NO),))
        K, class_N = output_NO.shape[1], label_N.long()
        # Elsewhere a look at the values would wait for the device, and its kernel checks them itself.
        if label_N.device.type == "cpu" and not ((class_N == label_N) & (class_N >= 0) & (class_N < K)).all():
            raise DataError(f"multiclass labels must be whole numbers from 0 to {K - 1}: the labels name {K} classes")
        return functional.cross_entropy(output_NO, class_N, reduction="sum"), number_of(label_N)

    def prediction(self, output_NO: Tensor) -> Tensor:
        """(N, K): probability of each class."""
        return output_NO.softmax(-1)


class Multilabel(LabelObjective):
    """The probabilities of K binary labels; the sum of their binary cross-entropies, without those that are NaN."""

    def __init__(self, settings: MultilabelConfig, width: int, vocabulary: Vocabulary, question: Question | None):
        super().__init__(settings, width, question_of(settings, question, MULTILABEL).num_outputs)

    def total(self, output_NO: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
        """Over samples and labels (N, K) that are known."""
        self.check_labels(label_N, tuple(output_NO.shape))
        known_NK = ~label_N.isnan()
        label_NK = torch.where(known_NK, label_N, 0.0)
        check_binary("multilabel", label_NK)
        each_NK = functional.binary_cross_entropy_with_logits(output_NO, label_NK, reduction="none")
        return torch.where(known_NK, each_NK, 0.0).sum(), known_NK.sum().float()

    def prediction(self, output_NO: Tensor) -> Tensor:
        """(N, K): probability of each label."""
        return output_NO.sigmoid()


class Regression(LabelObjective):
    """A number with a normal error; the negative log-likelihood, with one width for all samples.

    The head predicts in units of the error's width, counted from the center of the labels, so that labels of any size
    look alike to it. Center and first width are settings, which a run keeps. The width is learned on a logarithmic
    scale, with strides that let it find its size within some hundred steps even where no setting says it.
    """

    STRIDE = 32.0
    """An optimizer's step on the parameter counts so many times for the logarithm of the width."""

    def __init__(self, settings: RegressionConfig, width: int, vocabulary: Vocabulary, question: Question | None):
        question_of(settings, question, REGRESSION)
        super().__init__(settings, width, 1)
        self.center = 0.0 if settings.center is None else settings.center
        self.scale = 1.0 if settings.scale is None else settings.scale
        if not (math.isfinite(self.center) and 0 < self.scale < math.inf):
            raise ConfigError(
                f"objective: center is {settings.center} and scale is {settings.scale}; center must be a finite number "
                "and scale one above 0"
            )
        self.log_width = nn.Parameter(torch.zeros(()))

    def error_width(self) -> Tensor:
        """Standard deviation of the error, in the unit of the labels. Gradients are those of its logarithm."""
        log_width = self.log_width + (self.STRIDE - 1) * self.log_width.detach()
        return self.scale * log_width.exp()

    def total(self, output_NO: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
        """Over samples."""
        self.check_labels(label_N, (len(output_NO),))
        if label_N.device.type == "cpu" and not label_N.isfinite().all():
            raise DataError("labels of regression must be finite numbers, and none may be missing")
        variance_N = self.error_width().square().expand_as(label_N)
        total = functional.gaussian_nll_loss(
            self.prediction(output_NO), label_N, variance_N, full=True, eps=0.0, reduction="sum"
        )
        return total, number_of(label_N)

    def prediction(self, output_NO: Tensor) -> Tensor:
        """(N,): expected number, in the unit of the labels."""
        return self.center + self.error_width() * output_NO[:, 0]
