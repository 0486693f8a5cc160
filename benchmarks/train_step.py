"""One training step (forward, backward, AdamW) of our ``gpt`` against a minimal loop of the same shape.

    python benchmarks/train_step.py            the shape of docs/results.md: 4 layers, width 256, 8 x 512 tokens
    python benchmarks/train_step.py --quick    a few seconds, for trying the script out

The floor is what one would write by hand: fused query-key-value projection, SDPA with ``is_causal``, no masks, no
checks, no segments. All engines are stepped in turn in one process, so that a busy machine slows all of them; a ratio
is the median over the rounds. Time is CPU time of the process (all threads) on CPU, wall time on CUDA. Aim: at least
0.97 of the floor's throughput, and bf16 autocast at least 1.3 times float32. bf16 is left out on processors without
instructions for it, where it is emulated and many times slower; ``--bf16`` measures it anyway.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from ehr_core.batch import Batch
from ehr_core.formats.vocabulary import Vocabulary
from ehr_core.plugins import build
from ehr_models.objectives.settings import NextTokenConfig
from ehr_models.settings import GPTConfig
from torch import Tensor, nn
from torch.nn import functional


class FloorBlock(nn.Module):
    """A pre-LN block, by hand."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, bias=False) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        B, T, D = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(B, T, D))
        return x + self.down(functional.gelu(self.up(self.norms[1](x))))


class Floor(nn.Module):
    """The same network with nothing around it; gives the mean loss."""

    def __init__(self, shape: GPTConfig, vocabulary: int):
        super().__init__()
        self.token = nn.Embedding(vocabulary, shape.width)
        self.position = nn.Embedding(shape.context_length, shape.width)
        self.blocks = nn.Sequential(*(FloorBlock(shape.width, shape.num_heads) for _ in range(shape.num_layers)))
        self.norm = nn.LayerNorm(shape.width, bias=False)
        for weight in self.parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.02)

    def forward(self, token: Tensor) -> Tensor:
        """(B, T) ids to the mean cross-entropy of the next tokens."""
        x = self.token(token) + self.position.weight[: token.shape[1]]
        logits = functional.linear(self.norm(self.blocks(x))[:, :-1].flatten(0, 1), self.token.weight)
        return functional.cross_entropy(logits.float(), token[:, 1:].flatten())


def engine(model: nn.Module, loss: Callable[[], Tensor], bf16: bool) -> Callable[[], float]:
    """A function that makes one step and returns the loss."""
    device = next(model.parameters()).device.type
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)

    def step() -> float:
        with torch.autocast(device, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext():
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.item()

    return step


def engines(
    shape: GPTConfig, vocabulary: int, token: Tensor, windows: int, bf16: bool
) -> dict[str, Callable[[], float]]:
    """What is compared, by name."""
    whole, packed = (batch_of(token, number) for number in (1, windows))

    def ours(batch: Batch, bf16: bool) -> Callable[[], float]:
        model = build("model", shape, vocabulary_size=vocabulary, columns=[]).to(token.device)
        objective = build(
            "objective", NextTokenConfig(), width=shape.width, vocabulary=Vocabulary.build([]), question=None
        )

        def loss() -> Tensor:
            found = objective.loss(model, batch)
            return found.total / found.count

        return engine(model, loss, bf16)

    def floor(bf16: bool) -> Callable[[], float]:
        model = Floor(shape, vocabulary).to(token.device)
        return engine(model, lambda: model(token), bf16)

    found = {"floor": floor(False), "gpt": ours(whole, False), "gpt, packed": ours(packed, False)}
    return found | {"floor, bf16": floor(True), "gpt, bf16": ours(whole, True)} if bf16 else found


def has_bf16(device: str) -> bool:
    """Whether the device computes in bf16 itself."""
    if device != "cpu":
        return True
    with contextlib.suppress(OSError):
        return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(Path("/proc/cpuinfo").read_text().split()))
    return False


def batch_of(token: Tensor, windows: int) -> Batch:
    """Rows of ``windows`` windows of equal length each."""
    T = token.shape[1]
    index = torch.arange(T, device=token.device).expand(token.shape)
    length = -(-T // windows)
    static = torch.zeros_like(token, dtype=torch.bool)
    return Batch(token, index % length, index // length + 1, static)


def measure(steps: dict[str, Callable[[], float]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each step, engines in turn; the first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    clock = time.process_time if device == "cpu" else time.perf_counter
    for number in range(rounds + 1):
        for name, step in steps.items():
            start = clock()
            step()  # ends with .item(), which waits for the device
            if number:
                seconds[name].append(clock() - start)
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small shape and few rounds")
    for name, default in (("layers", 4), ("heads", 4), ("width", 256), ("context", 512), ("batch", 8), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--windows", type=int, default=4, help="windows packed into a row")
    parser.add_argument("--bf16", action="store_true", help="measure bf16 even where it is emulated")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.quick:
        args.layers, args.width, args.context, args.batch, args.vocabulary, args.rounds = 2, 96, 256, 4, 1024, 5
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    shape = GPTConfig(
        num_layers=args.layers, num_heads=args.heads, width=args.width, context_length=args.context, dropout=0.0
    )
    token = torch.randint(7, args.vocabulary, (args.batch, args.context), device=args.device)
    steps = engines(shape, args.vocabulary, token, args.windows, args.bf16 or has_bf16(args.device))
    seconds = measure(steps, args.rounds, args.device)

    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads, {shape}, batch {args.batch}")
    clock = "CPU" if args.device == "cpu" else "wall"
    for name, times in seconds.items():
        print(f"{name:<14} {token.numel() / statistics.median(times):10,.0f} tokens per {clock} second")
    pairs = (
        ("gpt", "floor", "aim 0.97"),
        ("gpt, packed", "floor", f"{args.windows} windows a row, exact"),
        ("gpt, bf16", "floor, bf16", "aim 0.97"),
        ("gpt, bf16", "gpt", "aim 1.3"),
    )
    for one, other, remark in pairs:
        if one not in seconds:
            print(f"{one} / {other}: not measured, this processor has no bf16 instructions")
            continue
        ratio = statistics.median(b / a for a, b in zip(seconds[one], seconds[other], strict=True))
        print(f"{one} / {other}: {ratio:.3f} ({remark})")


if __name__ == "__main__":
    main()
