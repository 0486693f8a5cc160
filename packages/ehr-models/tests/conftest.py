import pytest
import torch
from ehr_core.batch import Batch
from ehr_models.gpt import GPT, build
from ehr_models.settings import GPTConfig

VOCABULARY = 100


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def model() -> GPT:
    """A small network in evaluation mode, with weights that are large enough to tell positions apart."""
    return sharpen(build(GPTConfig(num_layers=2, num_heads=4, width=32, context_length=64), VOCABULARY)).eval()


def sharpen(model: GPT) -> GPT:
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return model


def pack(*rows: list[torch.Tensor], width: int = 0, prefix: int = 0, labels: list[float] | None = None) -> Batch:
    """A batch of rows of windows; the first ``prefix`` tokens of each window are static, its last one is a sample."""
    width = max([width, *(sum(len(window) for window in row) for row in rows)])
    token, position, segment = (torch.zeros(len(rows), width, dtype=torch.int64) for _ in range(3))
    static = torch.zeros(len(rows), width, dtype=torch.bool)
    last = []
    for b, row in enumerate(rows):
        start = 0
        for number, window in enumerate(row, start=1):
            here = slice(start, start + len(window))
            token[b, here], position[b, here], segment[b, here] = window, torch.arange(len(window)), number
            static[b, start : start + prefix] = True
            start += len(window)
            last.append(b * width + start - 1)
    label = None if labels is None else torch.tensor(labels)
    return Batch(token, position, segment, static, label_N=label, last_N=torch.tensor(last))


def windows(*lengths: int) -> list[torch.Tensor]:
    return [torch.randint(7, VOCABULARY, (length,)) for length in lengths]


@pytest.fixture(name="pack")
def pack_fixture():
    return pack


@pytest.fixture(name="windows")
def windows_fixture():
    return windows
