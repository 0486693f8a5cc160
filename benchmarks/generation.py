"""Draw 16 trajectories of 256 tokens after a prompt of 256: our engine against three other ways, in one run.

    python benchmarks/generation.py            the shape of docs/results.md: 4 layers, width 256, 4,096 tokens
    python benchmarks/generation.py --quick    a few seconds, for trying the script out

    loop        by hand: fused query-key-value projection, a preallocated cache, the prompt computed once, no checks
    generate    transformers' GPT2LMHeadModel of the same shape, ``generate`` with its dynamic cache
    recompute   our model on whole contexts at every step, as ETHOS generates; timed at three lengths, and integrated by
                Simpson's rule

All of them run in turn in one process, so that a busy machine slows all of them; a ratio is the median over the
rounds. Time is CPU time of one thread on CPU, wall time on CUDA. Aim: at least 0.95 of the loop's throughput, 1.6 times
generate's and 40 times recomputation's.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from ehr_core.formats.vocabulary import Token, Vocabulary
from ehr_core.plugins import build
from ehr_models.generation.engine import Engine
from ehr_models.generation.rows import Prompt
from ehr_models.generation.settings import GenerationConfig
from ehr_models.settings import GPTConfig
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel


@dataclasses.dataclass(frozen=True)
class Work:
    """What is drawn."""

    draws: int
    prompt: int
    new: int
    vocabulary: int

    @property
    def tokens(self) -> int:
        """New tokens in all."""
        return self.draws * self.new


class Loop:
    """What one would write by hand for one prompt."""

    def __init__(self, shape: GPTConfig, work: Work, device: str):
        D = shape.width
        self.shape, self.work = shape, work

        def weight(*size: int) -> Tensor:
            return torch.randn(*size, device=device) * 0.02

        self.token, self.position = weight(work.vocabulary, D), weight(shape.context_length, D)
        self.layers = [
            (weight(3 * D, D), weight(D, D), weight(4 * D, D), weight(D, 4 * D)) for _ in range(shape.num_layers)
        ]
        self.norm = torch.ones(D, device=device)

    def forward(self, x: Tensor, cache: list[Tensor], start: int) -> Tensor:
        """(B, T, D) to (B, T, D); keys and values go into ``cache``, (2, B, H, L, C) a layer, at ``start``."""
        (B, T, D), H = x.shape, self.shape.num_heads
        for (qkv, out, up, down), kept in zip(self.layers, cache, strict=True):
            y = functional.layer_norm(x, (D,), self.norm)
            q, *kv = functional.linear(y, qkv).view(B, T, 3, H, D // H).permute(2, 0, 3, 1, 4)
            kept[0, :, :, start : start + T], kept[1, :, :, start : start + T] = kv
            k, v = kept[:, :, :, : start + T]
            seen = functional.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
            x = x + functional.linear(seen.transpose(1, 2).reshape(B, T, D), out)
            y = functional.layer_norm(x, (D,), self.norm)
            x = x + functional.linear(functional.gelu(functional.linear(y, up)), down)
        return functional.layer_norm(x, (D,), self.norm)

    @torch.inference_mode()
    def __call__(self, prompt_T: Tensor) -> Tensor:
        """New tokens (draws, new)."""
        work, shape, T = self.work, self.shape, len(prompt_T)
        size = (2, 1, shape.num_heads, work.prompt + work.new, shape.width // shape.num_heads)
        once = [torch.zeros(size, device=prompt_T.device) for _ in self.layers]
        hidden = self.forward((self.token[prompt_T] + self.position[:T])[None], once, 0)[:, -1].expand(work.draws, -1)
        cache = [kept.repeat(1, work.draws, 1, 1, 1) for kept in once]
        out = torch.empty(work.draws, work.new, dtype=torch.int64, device=prompt_T.device)
        for step in range(work.new):
            probability = functional.linear(hidden, self.token).softmax(-1)
            token = torch.multinomial(probability, 1)
            out[:, step] = token[:, 0]
            if step + 1 < work.new:
                hidden = self.forward(self.token[token] + self.position[T + step], cache, T + step)[:, 0]
        return out


def transformers_generate(shape: GPTConfig, work: Work, device: str) -> Callable[[Tensor], Tensor]:
    """GPT-2 of transformers, which computes the prompt once for each draw."""
    config = GPT2Config(
        vocab_size=work.vocabulary,
        n_positions=shape.context_length,
        n_embd=shape.width,
        n_layer=shape.num_layers,
        n_head=shape.num_heads,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = GPT2LMHeadModel(config).eval().to(device)

    @torch.inference_mode()
    def draw(prompt_T: Tensor) -> Tensor:
        found: Tensor = model.generate(
            prompt_T[None],
            attention_mask=torch.ones_like(prompt_T)[None],  # said, so that it is not guessed from padding
            do_sample=True,
            top_k=0,
            max_new_tokens=work.new,
            min_new_tokens=work.new,
            num_return_sequences=work.draws,
            cache_implementation="dynamic",
        )
        return found[:, len(prompt_T) :]

    return draw


def our_engine(model: nn.Module, work: Work) -> Callable[[Tensor], Tensor]:
    """Ours; nothing stops a trajectory, so that all engines draw as many tokens."""
    codes = [Token(f"CODE//{index}", "code") for index in range(work.vocabulary - 7)]
    settings = GenerationConfig(draws=work.draws, max_new_tokens=work.new, rows=work.draws)
    engine = Engine(model, Vocabulary.build(codes), settings)

    def draw(prompt_T: Tensor) -> Tensor:
        found = list(engine.generate([Prompt(1, 0, prompt_T.cpu().numpy())]))
        return torch.from_numpy(np.stack([one.tokens for one in found]))

    return draw


def recompute_step(model: nn.Module, work: Work, length: int, device: str) -> Callable[[], None]:
    """One step of all draws at one length."""
    context = torch.randint(7, work.vocabulary, (work.draws, length), device=device)

    @torch.inference_mode()
    def step() -> None:
        hidden = model(context).last_hidden_state[:, -1]
        torch.multinomial(model.lm_logits(hidden).softmax(-1), 1)

    return step


def seconds_of(call: Callable[[], object], device: str) -> float:
    """CPU time on CPU, wall time on CUDA."""
    if device == "cpu":
        start = time.process_time()
        call()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(shape: GPTConfig, work: Work, rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each engine in each round."""
    torch.manual_seed(0)
    model = build("model", shape, vocabulary_size=work.vocabulary, columns=[]).eval().to(device)
    prompt = torch.randint(7, work.vocabulary, (work.prompt,), device=device)
    engines = {
        "engine": our_engine(model, work),
        "loop": Loop(shape, work, device),
        "generate": transformers_generate(shape, work, device),
    }
    for name, draw in engines.items():
        assert draw(prompt[:8]).shape == (work.draws, work.new), name
    lengths = (work.prompt, work.prompt + work.new // 2, work.prompt + work.new - 1)
    steps = [recompute_step(model, work, length, device) for length in lengths]
    steps[0]()
    found: dict[str, list[float]] = {name: [] for name in (*engines, "recompute")}
    for _ in range(rounds):
        for name, draw in engines.items():
            found[name].append(seconds_of(lambda draw=draw: draw(prompt), device))
        first, middle, last = (seconds_of(step, device) for step in steps)
        found["recompute"].append(work.new * (first + 4 * middle + last) / 6)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small shape")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    work = Work(4, 32, 16, 256) if options.quick else Work(16, 256, 256, 4096)
    shape = GPTConfig(num_layers=4, num_heads=4, width=256, context_length=work.prompt + work.new)
    found = measure(shape, work, options.rounds, options.device)
    print(f"{work.draws} x {work.new} tokens after {work.prompt}, {options.device}, torch {torch.__version__}")
    for name, seconds in found.items():
        ratios = [other / own for other, own in zip(seconds, found["engine"], strict=True)]
        rate = work.tokens / statistics.median(seconds)
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(
            f"{name:<10} {rate:>10,.0f} tokens/s   engine is {statistics.median(ratios):6.2f} times as fast ({spread})"
        )


if __name__ == "__main__":
    main()
