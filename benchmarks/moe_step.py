"""One training step of ``gpt`` with experts against ``gpt`` of the same active parameters.

    python benchmarks/moe_step.py              4 experts, two a token; 4 layers, width 256, 8 x 512 tokens
    python benchmarks/moe_step.py --quick      a few seconds, for trying the script out

A token meets ``top_k`` experts of 8/3 times the width, each of three matrices: as many numbers as an MLP of two
matrices of 4 * top_k times the width, which is the dense model. It has the same attention, objective and optimizer; the
model with experts has more parameters to optimize, and that is in its time. Both are stepped in turn in one process;
the ratio is the median over the rounds. Time is CPU time of the process on CPU, wall time on CUDA. Aim: at most 1.25;
EHR_FM's own implementation took 1.58 times its dense model on this shape.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from ehr_core.batch import Batch
from ehr_core.formats.vocabulary import Vocabulary
from ehr_core.plugins import build
from ehr_models.objectives.settings import NextTokenConfig
from ehr_models.settings import GPTConfig


def stepper(shape: GPTConfig, vocabulary: int, batch: Batch, bf16: bool) -> tuple[Callable[[], float], int, int]:
    """A function that makes one step and returns the loss; parameters in all, and those that a token meets."""
    device = batch.token_BT.device
    model = build("model", shape, vocabulary_size=vocabulary, columns=[]).to(device)
    objective = build("objective", NextTokenConfig(), width=shape.width, vocabulary=Vocabulary.build([]), question=None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)

    def step() -> float:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            loss = objective.loss(model, batch)
        (loss.total / loss.count).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.total.detach())

    total = sum(weight.numel() for weight in model.parameters())
    experts = sum(weight.numel() for name, weight in model.named_parameters() if ".experts." in name)
    idle = experts * (shape.num_experts - shape.top_k) // shape.num_experts if shape.num_experts else 0
    return step, total, total - idle


def measure(steps: dict[str, Callable[[], float]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each step, in turn; the first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    clock = time.process_time if device == "cpu" else time.perf_counter
    for number in range(rounds + 1):
        for name, step in steps.items():
            start = clock()
            step()  # ends with float(), which waits for the device
            if number:
                seconds[name].append(clock() - start)
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small shape and few rounds")
    for name, default in (("layers", 4), ("heads", 4), ("width", 256), ("context", 512), ("batch", 8), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.quick:
        args.layers, args.width, args.context, args.batch, args.vocabulary, args.rounds = 2, 96, 256, 4, 1024, 5
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    token = torch.randint(7, args.vocabulary, (args.batch, args.context), device=args.device)
    index = torch.arange(args.context, device=args.device).expand(token.shape)
    batch = Batch(token, index, torch.ones_like(token), torch.zeros_like(token, dtype=torch.bool))
    shape = {"num_layers": args.layers, "num_heads": args.heads, "width": args.width, "context_length": args.context}
    settings = {
        "dense": GPTConfig(**shape, mlp_ratio=4 * args.top_k),
        "experts": GPTConfig(**shape, num_experts=args.experts, top_k=args.top_k),
    }
    made = {name: stepper(found, args.vocabulary, batch, args.bf16) for name, found in settings.items()}
    seconds = measure({name: step for name, (step, _, _) in made.items()}, args.rounds, args.device)

    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads, bf16 {args.bf16}, {settings['experts']}")
    for name, (_, total, active) in made.items():
        rate = token.numel() / statistics.median(seconds[name])
        print(f"{name:<8} {total:>12,} parameters, {active:>12,} a token: {rate:10,.0f} tokens/s")
    ratio = statistics.median(one / other for one, other in zip(seconds["experts"], seconds["dense"], strict=True))
    print(f"time of experts / dense: {ratio:.3f} (aim at most 1.25)")


if __name__ == "__main__":
    main()
