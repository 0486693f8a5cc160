"""A mixture of experts without dropped tokens: each token goes to the experts that its own router scores choose.

A choice depends on nothing but the token itself, so the layer is causal, deterministic in evaluation, and the same for
a token whatever shares its batch. Experts are GEGLU (Shazeer 2020, "GLU Variants Improve Transformer"); the assignments
are sorted by expert, so that every expert is one matrix product (Gale et al. 2022, "MegaBlocks"). The balance loss is
that of Switch Transformer (Fedus et al. 2021), the z-loss that of ST-MoE (Zoph et al. 2022).

Shapes: B rows, T positions, N = B * T tokens, D width, E experts, K experts a token, M = N * K assignments, I inner
width of an expert, L layers with experts.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

BALANCE, ROUTER_Z = 0, 1
"""Places in a layer's statistics; the loads of the experts follow."""


def gated_width(width: int, ratio: float) -> int:
    """Inner width of a gated MLP that has as many parameters as an ungated one of ``ratio`` times the width."""
    return int(ratio * width * 2 / 3)


class ExpertLinear(nn.Module):
    """One matrix an expert, (E, outputs, inputs), without biases; starts by its own number of inputs."""

    def __init__(self, num_experts: int, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, outputs, inputs))
        self.std = (3 * inputs) ** -0.5  # that of a uniform draw between -inputs^-0.5 and inputs^-0.5


class ResidualExpertLinear(ExpertLinear):
    """Writes to the residual stream; it starts smaller, by the number of such layers."""


class Experts(nn.Module):
    """E GEGLU networks side by side."""

    def __init__(self, num_experts: int, width: int, inner: int):
        super().__init__()
        self.up_proj = ExpertLinear(num_experts, width, 2 * inner)
        self.down_proj = ResidualExpertLinear(num_experts, inner, width)

    def forward(self, x_MD: Tensor, end_E: Tensor) -> Tensor:
        """Assignments sorted by expert to (M, D); ``end_E`` int32 is where each expert's assignments end."""
        up, down = self.up_proj.weight, self.down_proj.weight
        if has_grouped_product(x_MD, up):
            return experts_grouped(x_MD, end_E, up, down)
        return experts_one_by_one(x_MD, end_E, up, down)


def geglu(x: Tensor) -> Tensor:
    """(..., 2 I), values beside gates, to (..., I)."""
    value, gate = x.chunk(2, dim=-1)
    return functional.gelu(gate) * value


def experts_one_by_one(x_MD: Tensor, end_E: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """One expert after the other: the fastest on CPU, and what every release of torch can; waits for the device."""
    lengths = torch.diff(end_E, prepend=end_E.new_zeros(1)).tolist()
    # unbind, because the gradient of an index would be the size of all experts, once for each expert
    parts = zip(x_MD.split(lengths), up.unbind(), down.unbind(), strict=True)
    return torch.cat([functional.linear(geglu(functional.linear(x, one)), two) for x, one, two in parts])


def experts_grouped(x_MD: Tensor, end_E: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """All experts in two kernels, nothing waits for the device. Gradients must not have strides of zero."""
    product: Any = getattr(functional, "grouped_mm", None) or torch._grouped_mm
    dtype = product_dtype(x_MD)
    x, one, two = (tensor.to(dtype) for tensor in (x_MD, up, down))
    inner_MI = geglu(product(x, one.transpose(1, 2), offs=end_E))
    out_MD: Tensor = product(inner_MI, two.transpose(1, 2), offs=end_E)
    return out_MD


def product_dtype(x: Tensor) -> torch.dtype:
    """What a matrix product computes in here: grouped ones do not follow autocast by themselves."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def has_grouped_product(x_MD: Tensor, up_EOD: Tensor) -> bool:
    """Whether this device and torch have a grouped product for such tensors, and it is the faster way."""
    if x_MD.device.type != "cuda" or product_dtype(x_MD) != torch.bfloat16:
        return False
    D, I = up_EOD.shape[2], up_EOD.shape[1] // 2  # noqa: E741 - the inner width of the module's docstring
    if D % 8 or I % 8:  # rows must start at multiples of 16 bytes
        return False
    major = torch.cuda.get_device_capability(x_MD.device)[0]
    return (hasattr(functional, "grouped_mm") and major >= 8) or (hasattr(torch, "_grouped_mm") and major == 9)


class Spread(torch.autograd.Function):
    """Copies of tokens in the order of their experts; the gradient is gathered, so it is deterministic on CUDA too."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, order_M: Tensor, place_M: Tensor, top_k: int) -> Tensor:  # type: ignore[override]
        """(N, D) to (M, D): assignment ``order_M[i]`` is at i, and assignment j is at ``place_M[j]``."""
        ctx.save_for_backward(place_M)
        ctx.top_k = top_k
        return x_ND.index_select(0, order_M // top_k)

    @staticmethod
    def backward(ctx: Any, grad_MD: Tensor) -> Any:  # type: ignore[override]
        """Sum over the copies of each token."""
        (place_M,) = ctx.saved_tensors
        return grad_MD.index_select(0, place_M).unflatten(0, (-1, ctx.top_k)).sum(1), None, None, None


class Collect(torch.autograd.Function):
    """Results back in the order of the tokens."""

    @staticmethod
    def forward(ctx: Any, y_MD: Tensor, order_M: Tensor, place_M: Tensor) -> Tensor:  # type: ignore[override]
        """(M, D) in the order of experts to (M, D) in the order of tokens."""
        ctx.save_for_backward(order_M)
        return y_MD.index_select(0, place_M)

    @staticmethod
    def backward(ctx: Any, grad_MD: Tensor) -> Any:  # type: ignore[override]
        """The same the other way."""
        (order_M,) = ctx.saved_tensors
        return grad_MD.index_select(0, order_M), None, None


class Router(nn.Linear):
    """Scores in float32, whatever its weight is kept in; a layer that is called, so that an adapter on it counts."""

    def forward(self, x_ND: Tensor) -> Tensor:
        """(N, D) float32 to (N, E)."""
        return functional.linear(x_ND, self.weight.float())


class MoE(nn.Module):
    """Router and experts in the place of an MLP."""

    def __init__(self, width: int, inner: int, num_experts: int, top_k: int, noisy: bool = False):
        """``noisy``: in training, experts are drawn by their scores (Gumbel noise) instead of taken by them."""
        super().__init__()
        self.num_experts, self.top_k, self.noisy = num_experts, top_k, noisy
        self.router = Router(width, num_experts, bias=False)
        self.experts = Experts(num_experts, width, inner)

    def forward(self, x_BTD: Tensor, share_N: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) to (B, T, D), and statistics when ``share_N`` says what each token counts in them."""
        x_ND = x_BTD.flatten(0, 1)
        score_NE = self.scores(x_ND)
        expert_NK, gate_NK = self.choose(score_NE)
        expert_M, order_M = expert_NK.flatten().sort(stable=True)
        place_M = torch.empty_like(order_M)
        place_M[order_M] = torch.arange(order_M.shape[0], device=order_M.device)
        every_E = torch.arange(self.num_experts, device=expert_M.device)
        end_E = torch.searchsorted(expert_M, every_E, right=True, out_int32=True)
        y_MD = self.experts(Spread.apply(x_ND, order_M, place_M, self.top_k), end_E)
        y_NKD = Collect.apply(y_MD, order_M, place_M).unflatten(0, (-1, self.top_k))
        y_ND = (y_NKD * gate_NK.to(y_NKD.dtype)[..., None]).sum(1)
        statistics = None if share_N is None else self.statistics(score_NE, expert_NK, share_N)
        return y_ND.view(x_BTD.shape), statistics

    def scores(self, x_ND: Tensor) -> Tensor:
        """Router scores (N, E), in float32 whatever the model computes in."""
        with torch.autocast(x_ND.device.type, enabled=False):
            score_NE: Tensor = self.router(x_ND.float())
        return score_NE

    def choose(self, score_NE: Tensor) -> tuple[Tensor, Tensor]:
        """Experts (N, K) and their gates (N, K), which sum to 1; a single expert's is its probability among all,
        because a gate of 1 would teach the router nothing."""
        ranked_NE = score_NE.detach()
        if self.noisy and self.training:
            ranked_NE = ranked_NE - torch.empty_like(ranked_NE).exponential_().log()
        expert_NK = ranked_NE.topk(self.top_k, dim=-1).indices
        if self.top_k == 1:
            return expert_NK, score_NE.softmax(-1).gather(-1, expert_NK)
        return expert_NK, score_NE.gather(-1, expert_NK).softmax(-1)

    def statistics(self, score_NE: Tensor, expert_NK: Tensor, share_N: Tensor) -> Tensor:
        """(2 + E) float32: balance loss, z-loss, and each expert's share of the assignments (without a gradient).

        The balance loss is E times the sum over experts of share times mean probability; 1 when all are used alike.
        """
        every_E = torch.arange(self.num_experts, device=expert_NK.device)
        chosen_NE = (expert_NK[..., None] == every_E).sum(1)
        with torch.autocast(score_NE.device.type, enabled=False):
            load_E = share_N @ chosen_NE.to(share_N.dtype) / self.top_k
            balance = self.num_experts * (load_E * (share_N @ score_NE.softmax(-1))).sum()
            router_z = share_N @ score_NE.logsumexp(-1).square()
        return torch.cat([torch.stack([balance, router_z]), load_E])


def shares(token_BT: Tensor, segment_BT: Tensor | None) -> tuple[Tensor, Tensor]:
    """What each token counts in a mean, (N,) float32 that sum to 1 over all but padding, and how many tokens count."""
    real_BT = torch.ones_like(token_BT) if segment_BT is None else segment_BT != 0
    real_N = real_BT.flatten().float()
    count = real_N.sum().clamp_min(1.0)
    return real_N / count, count


Pairs = dict[str, tuple[Tensor, Tensor]]


def summarize(value_LS: Tensor, count: Tensor, balance_weight: float, router_z_weight: float) -> tuple[Pairs, Pairs]:
    """Weighted losses, and figures to log, of the statistics of all layers: (sum, count) pairs over the tokens.

    Losses are summed over layers. ``expert_load_e`` is expert e's share of all assignments, ``expert_load_max`` the
    largest share in a layer times E, averaged over layers: 1 when experts are used alike.
    """
    totals = {"balance": value_LS[:, BALANCE].sum(), "router_z": value_LS[:, ROUTER_Z].sum()}
    weights = {"balance": balance_weight, "router_z": router_z_weight}
    losses = {name: (weights[name] * value * count, count) for name, value in totals.items() if weights[name]}
    load_LE = value_LS[:, ROUTER_Z + 1 :].detach()
    figures = {name: value.detach() for name, value in totals.items()}
    figures["expert_load_max"] = load_LE.max(dim=1).values.mean() * load_LE.shape[1]
    figures |= {f"expert_load_{expert}": share for expert, share in enumerate(load_LE.mean(0))}
    return losses, {name: (value * count, count) for name, value in figures.items()}


def start_std(module: ExpertLinear, num_layers: int) -> float:
    """Standard deviation that a module's weights start with."""
    return module.std / math.sqrt(2 * num_layers) if isinstance(module, ResidualExpertLinear) else module.std
