"""Networks on a GPU: use of its peak in training, experts, attention on packed rows, tokens a second drawn, memory.

    python benchmarks/gpu_models.py                        all parts, on the GPU
    python benchmarks/gpu_models.py --parts generate       some of them: train, experts, attention, generate
    python benchmarks/gpu_models.py --compile --json FILE  with torch.compile; what is printed, as JSON
    python benchmarks/gpu_models.py --tiny --device cpu    everything once in a few seconds, for trying the script out

Times are wall times between synchronisations, medians over the rounds after a warm-up; training is forward, backward
and fused AdamW under bf16 autocast (float32 on CPU). MFU is the share of the device's dense bf16 peak that the products
of the network need: 6 operations a step for each parameter that a token meets (tables that are only looked up left out,
the output layer by its share of predicted tokens), and 12 L D T for attention over T tokens, half of it where causal.
What dropout, norms and recomputation cost is not counted as use. The published system draws 1,200 tokens a second with
the model of ``generate`` on one H100.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ehr_core import config
from ehr_core.batch import Batch
from ehr_core.formats.vocabulary import SPECIALS, Token, Vocabulary
from ehr_core.plugins import build
from ehr_models.bert_settings import BertConfig
from ehr_models.generation.engine import Engine
from ehr_models.generation.rows import Prompt
from ehr_models.generation.settings import GenerationConfig
from ehr_models.layers.attention import attend
from ehr_models.layers.layout import FLEX_HEAD_WIDTHS, Layout, block_mask, dense_mask, has_flex, make_layout
from ehr_models.objectives.settings import MaskedConfig, NextTokenConfig
from ehr_models.settings import GPTConfig
from torch.nn.attention import SDPBackend, sdpa_kernel

PEAK = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "A10G": 70,
    "A10": 125,
    "RTX 4090": 165,
    "RTX 3090": 71,
}
"""Dense bf16 TFLOP/s as published, by a part of the device's name; the first that fits."""
TINY = {"num_layers": 1, "num_heads": 2, "width": 32, "mlp_width": 64, "context_length": 64}
VOCABULARY, GENES = 4480, 25_426
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Bench:
    """How to measure."""

    device: torch.device
    tiny: bool
    compiled: bool
    rounds: int
    peak: float | None
    """TFLOP/s."""

    @property
    def cuda(self) -> bool:
        """Whether times need a synchronisation."""
        return self.device.type == "cuda"

    def seconds(self, step: Callable[[], Any]) -> float:
        """Median wall time of a step; the first ones warm up."""
        found = []
        for _ in range(self.rounds + (1 if self.tiny else 3)):
            self.wait()
            start = time.perf_counter()
            step()
            self.wait()
            found.append(time.perf_counter() - start)
        return statistics.median(found[-self.rounds :])

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def measure(self, name: str, make: Callable[[], tuple[Callable[[], Any], Row]]) -> Row:
        """One row; what does not fit into the memory is said, and the rest goes on."""
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        try:
            step, facts = make()
            seconds = self.seconds(step)
        except torch.OutOfMemoryError:
            return {"name": name, "error": "out of memory"}
        rate = facts.pop("tokens") / seconds
        found: Row = {"name": name, **facts, "ms": 1000 * seconds, "tokens_per_s": rate}
        if "flops_per_token" in facts and self.peak:
            found["mfu"] = facts["flops_per_token"] * rate / (self.peak * 1e12)
        if self.cuda:
            found["peak_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        return found

    def small(self, settings: Any) -> Any:
        """The settings, or a model of a few thousand numbers with the same parts."""
        names = {field.name for field in dataclasses.fields(settings)}
        return dataclasses.replace(settings, **{k: v for k, v in TINY.items() if k in names}) if self.tiny else settings


def packed(rows: int, length: int, windows: int, vocabulary: int, device: torch.device) -> Batch:
    """Rows of ``windows`` windows of unequal length, the same in every row, without padding."""
    borders = (np.linspace(0, 1, windows + 1) ** 1.5 * length).round().astype(int)
    segment_T = torch.from_numpy(np.repeat(np.arange(1, windows + 1), np.diff(borders)))
    place_T = torch.arange(length) - torch.from_numpy(np.repeat(borders[:-1], np.diff(borders)))
    token = torch.randint(7, vocabulary, (rows, length))
    static = torch.zeros_like(token, dtype=torch.bool)
    shape = token.shape
    return Batch(token, place_T.expand(shape).clone(), segment_T.expand(shape).clone(), static).to(device)


def flops_per_token(model: Any, settings: Any, share: float) -> float:
    """Operations of a training step for each token; ``share`` of the tokens go through the output layer."""
    named = dict(model.named_parameters())
    experts = getattr(settings, "num_experts", 0)
    met = settings.top_k / experts if experts else 1.0
    blocks = sum(w.numel() * (met if ".experts." in name else 1) for name, w in named.items() if "blocks." in name)
    output = share * model.get_input_embeddings().weight.numel()
    attention = 12 * settings.num_layers * settings.width * settings.context_length
    return 6 * (blocks + output) + (attention / 2 if model.causal else attention)


def train(bench: Bench, name: str, settings: Any, batch_rows: int, vocabulary: int, windows: int = 1) -> Row:
    """A training step on rows of the model's whole context."""
    settings = bench.small(settings)
    batch_rows, vocabulary = (2, 200) if bench.tiny else (batch_rows, vocabulary)

    def make() -> tuple[Callable[[], Any], Row]:
        model = build("model", settings, vocabulary_size=vocabulary, columns=[]).to(bench.device).train()
        codes = range(vocabulary - len(SPECIALS))
        words = Vocabulary.build([Token(f"CODE//{number}", "code") for number in codes])
        wanted: Any = NextTokenConfig() if model.causal else MaskedConfig()
        objective = (
            build("objective", wanted, width=settings.width, vocabulary=words, question=None).to(bench.device).train()
        )
        batch = packed(batch_rows, settings.context_length, windows, vocabulary, bench.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        if bench.compiled:
            model.compile()

        def step() -> None:
            with torch.autocast(bench.device.type, dtype=torch.bfloat16, enabled=bench.cuda):
                loss = objective.loss(model, batch)
            (loss.total / loss.count).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        share = 1.0 if model.causal else wanted.rate
        facts = {"parameters": model.num_parameters(), "tokens": batch.token_BT.numel()}
        return step, {**facts, "flops_per_token": flops_per_token(model, settings, share)}

    return bench.measure(name, make)


def train_rows(bench: Bench) -> Iterator[Row]:
    """The systems' models; dropout of attention keeps FlexAttention from packed rows, so it is measured without."""
    monolith = config.preset("model", "gpt2_small_monolith")
    plain = dataclasses.replace(monolith, dropout=0.0)
    yield train(bench, "gpt2_small_monolith", monolith, 16, VOCABULARY)
    yield train(bench, "gpt2_small_monolith, no dropout", plain, 16, VOCABULARY)
    yield train(bench, "gpt2_small_monolith, no dropout, 8 windows a row", plain, 16, VOCABULARY, 8)
    yield train(bench, "gpt_modern", config.preset("model", "gpt_modern"), 16, VOCABULARY)
    bert = BertConfig(num_layers=12, num_heads=12, width=768, mlp_width=3072, context_length=512)
    yield train(bench, "bert, 12 layers, width 768", bert, 64, VOCABULARY)
    yield train(bench, "geneformer_10m", config.preset("model", "geneformer_10m"), 16, GENES)
    yield train(bench, "geneformer_106m", config.preset("model", "geneformer_106m"), 16, GENES)


def expert_rows(bench: Bench) -> Iterator[Row]:
    """Four experts, two a token, against a dense model of as many numbers a token."""
    shape = {"num_layers": 6, "num_heads": 12, "width": 768, "context_length": 2048}
    rows = [
        train(bench, name, settings, 16, VOCABULARY)
        for name, settings in (
            ("dense, MLP of 8 times the width", GPTConfig(**shape, mlp_ratio=8)),
            ("4 experts, 2 a token", GPTConfig(**shape, num_experts=4, top_k=2)),
        )
    ]
    if all("ms" in row for row in rows):
        rows[1]["time_over_dense"] = rows[1]["ms"] / rows[0]["ms"]
    yield from rows


def attention_rows(bench: Bench) -> Iterator[Row]:
    """Forward and backward of attention alone, (8, 2048, 12, 64), causal; packed rows hold 8 windows."""
    B, T, H, C = (2, 128, 2, 16) if bench.tiny else (8, 2048, 12, 64)
    segment_BT = packed(B, T, 8, 100, bench.device).segment_BT
    dtype = torch.bfloat16 if bench.cuda else torch.float32
    qkv = [torch.randn(B, T, H, C, device=bench.device, dtype=dtype, requires_grad=True) for _ in range(3)]
    layouts: dict[str, tuple[Layout, list[SDPBackend]]] = {
        "whole rows, SDPA": (Layout(True), []),
        "packed, SDPA with a dense mask": (Layout(True, mask=dense_mask(segment_BT, True)), []),
    }
    if bench.cuda:
        layouts["whole rows, flash"] = (Layout(True), [SDPBackend.FLASH_ATTENTION])
        layouts["whole rows, memory-efficient"] = (Layout(True), [SDPBackend.EFFICIENT_ATTENTION])
        if has_flex() and C in FLEX_HEAD_WIDTHS:
            layouts["packed, FlexAttention"] = (Layout(True, blocks=block_mask(segment_BT, True)), [])
    else:
        layouts["packed, one call a window"] = (make_layout(segment_BT, True, C), [])
    for name, (layout, kernels) in layouts.items():

        def make(layout: Layout = layout, kernels: list[SDPBackend] = kernels) -> tuple[Callable[[], Any], Row]:
            def step() -> None:
                attend(*qkv, layout).sum().backward()

            def with_kernel() -> None:
                with sdpa_kernel(kernels):
                    step()

            return (with_kernel if kernels else step), {"tokens": B * T}

        yield bench.measure(name, make)


def generate_rows(bench: Bench) -> Iterator[Row]:
    """Draws of gpt2_small_monolith in bf16: one prompt with 16, then many prompts that keep more rows busy."""
    settings = bench.small(config.preset("model", "gpt2_small_monolith"))
    prompt, new, draws, size = (8, 8, 4, 200) if bench.tiny else (256, 256, 16, VOCABULARY)
    vocabulary = Vocabulary.build([Token(f"CODE//{index}", "code") for index in range(size - 7)])
    for prompts in (1, 2) if bench.tiny else (1, 4, 16, 64):
        rows = prompts * draws

        def make(prompts: int = prompts, rows: int = rows) -> tuple[Callable[[], Any], Row]:
            model = build("model", settings, vocabulary_size=len(vocabulary), columns=[]).to(bench.device)
            model = model.bfloat16() if bench.cuda else model
            choice = GenerationConfig(draws=draws, max_new_tokens=new, rows=rows)
            engine = Engine(model, vocabulary, choice)
            random = np.random.default_rng(0)
            # Twice as many as there is room for, so that rows which end make way for others.
            number = prompts if prompts == 1 else 2 * prompts
            asked = [Prompt(one, 0, random.integers(7, len(vocabulary), prompt)) for one in range(number)]
            return lambda: list(engine.generate(asked)), {"tokens": number * draws * new}

        yield bench.measure(f"{draws} draws of {new} tokens after {prompt}, {rows} rows", make)


PARTS = {"train": train_rows, "experts": expert_rows, "attention": attention_rows, "generate": generate_rows}


def facts(device: torch.device) -> Row:
    """What it was measured on and with."""
    cuda = device.type == "cuda"
    names = ("torch", "transformers", "ehr-core", "ehr-models", "ehr-geneformer")
    return {
        "device": torch.cuda.get_device_name(device) if cuda else f"{platform.machine()} CPU",
        "memory_gib": torch.cuda.get_device_properties(device).total_memory / 2**30 if cuda else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in names},
    }


def peak_of(name: str) -> float | None:
    """Published peak in TFLOP/s, or None for a device that is not listed."""
    return next((float(peak) for part, peak in PEAK.items() if part in name), None)


FORMATS = {
    "parameters": "{:>13,}",
    "ms": "{:>10.2f}",
    "tokens_per_s": "{:>13,.0f}",
    "mfu": "{:>7.1%}",
    "peak_gib": "{:>9.2f}",
    "time_over_dense": "{:>6.3f}",
}


def line(row: Row) -> str:
    """A row of the table; what was not measured is a dash."""
    cells = []
    for name, form in FORMATS.items():
        width = len(form.format(0))
        cells.append(form.format(row[name]) if name in row else "-".rjust(width))
    return f"{row['name']:<52}" + " ".join(cells) + (f"  {row['error']}" if "error" in row else "")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small models and few rounds")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, with commas")
    parser.add_argument("--compile", action="store_true", help="torch.compile the networks that are trained")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--peak", type=float, help="dense bf16 TFLOP/s of a device that is not listed")
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts: no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    device = torch.device(options.device)
    if device.type != "cuda" and not options.tiny:
        parser.error("there is no CUDA device; give --tiny to try the script out on a CPU")
    torch.manual_seed(0)
    about = facts(device)
    peak = options.peak or peak_of(about["device"])
    bench = Bench(device, options.tiny, options.compile, 2 if options.tiny else options.rounds, peak)
    print(json.dumps({**about, "peak_tflops": peak, "compiled": options.compile, "tiny": options.tiny}))
    heads = " ".join(name.rjust(len(form.format(0))) for name, form in FORMATS.items())
    found: dict[str, list[Row]] = {}
    for part in parts:
        print(f"\n{part:<52}{heads}")
        found[part] = []
        for row in PARTS[part](bench):
            found[part].append(row)
            print(line(row), flush=True)
    if options.json:
        settings = {"peak_tflops": peak, "compiled": options.compile, "tiny": options.tiny, "rounds": bench.rounds}
        options.json.write_text(json.dumps({**about, **settings, "results": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
