"""``classification``, ``multiclass``, ``multilabel``, ``regression``: heads for labels that are known at once.

Shapes: N samples, K classes or labels.
"""

import torch
from ehr_core.errors import ConfigError, DataError
from torch import Tensor, nn
from torch.nn import functional

from ehr_models.objectives.heads import SampleObjective, check_binary, number_of
from ehr_models.objectives.settings import ClassificationConfig, MulticlassConfig, MultilabelConfig, RegressionConfig


class Classification(SampleObjective):
    """The probability of a binary label; binary cross-entropy."""

    def __init__(self, settings: ClassificationConfig, width: int):
        super().__init__(settings, width, 1)

    def total(self, output_NO: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
        """Over samples."""
        self.check_labels(label_N, [(len(output_NO),)])
        check_binary("classification", label_N)
        total = functional.binary_cross_entropy_with_logits(output_NO[:, 0], label_N, reduction="sum")
        return total, number_of(label_N)

    def probability(self, output_NO: Tensor) -> Tensor:
        """Of label 1."""
        return output_NO[:, 0].sigmoid()


class Multiclass(SampleObjective):
    """The probabilities of K classes; cross-entropy."""

    def __init__(self, settings: MulticlassConfig, width: int):
        if settings.num_classes < 2 or not 0 <= settings.positive < settings.num_classes:
            raise ConfigError(
                f"objective: num_classes is {settings.num_classes} and positive is {settings.positive}; "
                "there must be at least 2 classes, and the positive one is counted from 0"
            )
        super().__init__(settings, width, settings.num_classes)

    def total(self, output_NO: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
        """Over samples."""
        self.check_labels(label_N, [(len(output_NO),)])
        K, class_N = output_NO.shape[1], label_N.long()
        # Elsewhere a look at the values would wait for the device, and its kernel checks them itself.
        if label_N.device.type == "cpu" and not ((class_N == label_N) & (class_N >= 0) & (class_N < K)).all():
            raise DataError(f"multiclass labels must be whole numbers from 0 to {K - 1} (objective.num_classes={K})")
        return functional.cross_entropy(output_NO, class_N, reduction="sum"), number_of(label_N)

    def probabilities(self, output_NO: Tensor) -> Tensor:
        """(N, K), of all classes."""
        return output_NO.softmax(-1)

    def probability(self, output_NO: Tensor) -> Tensor:
        """Of the class ``positive``."""
        return self.probabilities(output_NO)[:, self.settings.positive]


class Multilabel(SampleObjective):
    """The probabilities of K binary labels; the sum of their binary cross-entropies, without those that are NaN."""

    def __init__(self, settings: MultilabelConfig, width: int):
        if not 0 <= settings.positive < settings.num_labels:
            raise ConfigError(
                f"objective: num_labels is {settings.num_labels} and positive is {settings.positive}; "
                "there must be at least 1 label, and the positive one is counted from 0"
            )
        super().__init__(settings, width, settings.num_labels)

    def total(self, output_NO: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
        """Over samples and labels that are known."""
        N, K = output_NO.shape
        self.check_labels(label_N, [(N, K), *([(N,)] if K == 1 else [])])
        label_NK = label_N.view(N, K)
        known_NK = ~label_NK.isnan()
        label_NK = torch.where(known_NK, label_NK, 0.0)
        check_binary("multilabel", label_NK)
        each_NK = functional.binary_cross_entropy_with_logits(output_NO, label_NK, reduction="none")
        return torch.where(known_NK, each_NK, 0.0).sum(), known_NK.sum().float()

    def probabilities(self, output_NO: Tensor) -> Tensor:
        """(N, K), of all labels."""
        return output_NO.sigmoid()

    def probability(self, output_NO: Tensor) -> Tensor:
        """Of the label ``positive``."""
        return self.probabilities(output_NO)[:, self.settings.positive]


class Regression(SampleObjective):
    """A number with a normal error; the negative log-likelihood, with one width for all samples."""

    def __init__(self, settings: RegressionConfig, width: int):
        super().__init__(settings, width, 1)
        self.log_sigma = nn.Parameter(torch.zeros(()))

    def total(self, output_NO: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
        """Over samples."""
        self.check_labels(label_N, [(len(output_NO),)])
        if label_N.device.type == "cpu" and not label_N.isfinite().all():
            raise DataError("labels of regression must be finite numbers, and none may be missing")
        variance_N = (2 * self.log_sigma).exp().expand_as(label_N)
        total = functional.gaussian_nll_loss(output_NO[:, 0], label_N, variance_N, full=True, reduction="sum")
        return total, number_of(label_N)

    def probability(self, output_NO: Tensor) -> Tensor:
        """Of a value above the threshold."""
        return torch.special.ndtr((output_NO[:, 0] - self.settings.threshold) * torch.exp(-self.log_sigma))
