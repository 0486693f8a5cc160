"""Experts: against a loop over tokens, and what must hold whatever their weights are."""

import pytest
import torch
from ehr_core.errors import ConfigError
from ehr_models.gpt import build
from ehr_models.layers import moe
from ehr_models.layers.moe import MoE
from ehr_models.settings import GPTConfig
from torch.nn import functional

from .parts import objective_of

SHAPE = {"num_layers": 4, "num_heads": 4, "width": 32, "context_length": 64, "num_experts": 4}


def layer(top_k: int = 2, num_experts: int = 4, noisy: bool = False) -> MoE:
    made = MoE(24, 40, num_experts, top_k, noisy)
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return made


def token_by_token(made: MoE, x_BTD: torch.Tensor) -> torch.Tensor:
    """The same mathematics written for one token at a time."""
    rows = []
    for x_D in x_BTD.flatten(0, 1):
        probability_E = (made.router.weight @ x_D).softmax(0)
        chosen = probability_E.argsort(descending=True)[: made.top_k].tolist()
        whole = sum(probability_E[e] for e in chosen) if made.top_k > 1 else 1.0
        y_D = torch.zeros_like(x_D)
        for e in chosen:
            value, gate = (made.experts.up_proj.weight[e] @ x_D).chunk(2)
            inner = value * functional.gelu(gate)
            y_D = y_D + probability_E[e] / whole * (made.experts.down_proj.weight[e] @ inner)
        rows.append(y_D)
    return torch.stack(rows).view(x_BTD.shape)


@pytest.fixture
def model():
    made = build(GPTConfig(**SHAPE, stride=2), 100)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return made.eval()


def states(model, batch):
    return model(**batch.inputs()).last_hidden_state


@pytest.mark.parametrize(("top_k", "num_experts"), [(1, 4), (2, 4), (3, 4), (2, 2), (1, 1), (2, 8)])
def test_the_layer_computes_what_a_loop_over_tokens_computes(top_k, num_experts):
    made, x = layer(top_k, num_experts), torch.randn(3, 17, 24)
    results = []
    for compute in (lambda x: made(x)[0], lambda x: token_by_token(made, x)):
        made.zero_grad()
        given = x.clone().requires_grad_()
        found = compute(given)
        (found * torch.linspace(-1, 1, found.numel()).view(found.shape)).sum().backward()
        results.append([found, given.grad, *(weight.grad for weight in made.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert all(weight.grad.abs().sum() > 0 for weight in made.parameters()) or num_experts == 1


def test_experts_that_nobody_chooses_do_no_harm():
    made, x = layer(top_k=1), torch.randn(1, 6, 24).abs()
    with torch.no_grad():
        made.router.weight.copy_(torch.tensor([-1.0, 2.0, -1.0, -1.0])[:, None].expand(4, 24))
    found, statistics = made(x, torch.full((6,), 1 / 6))
    found.sum().backward()
    torch.testing.assert_close(found, token_by_token(made, x), atol=1e-5, rtol=1e-4)
    assert statistics[2:].tolist() == pytest.approx([0, 1, 0, 0])
    assert (made.experts.up_proj.weight.grad[0] == 0).all()
    assert (made.experts.up_proj.weight.grad[1] != 0).any()


@pytest.mark.skipif(not hasattr(functional, "grouped_mm"), reason="this torch has no grouped product")
@pytest.mark.parametrize("lengths", [(5, 9, 3, 7), (0, 24, 0, 0)])
def test_grouped_products_give_what_one_expert_after_the_other_gives(lengths):
    up, down = torch.randn(4, 2 * 40, 24) * 0.2, torch.randn(4, 24, 40) * 0.2
    x, end = torch.randn(24, 24), torch.tensor(lengths).cumsum(0).int()
    results = []
    for compute in (moe.experts_one_by_one, moe.experts_grouped):
        given = [tensor.clone().requires_grad_() for tensor in (x, up, down)]
        found = compute(given[0], end, given[1], given[2])
        (found * torch.linspace(-1, 1, found.numel()).view(found.shape)).sum().backward()
        results.append([found, *(tensor.grad for tensor in given)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_the_losses_are_those_of_the_definition():
    made, x, real = layer(), torch.randn(2, 6, 24), torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    share_N, count = moe.shares(real.long(), real.long())
    _, found = made(x, share_N)
    score = x[real] @ made.router.weight.T
    probability = score.softmax(-1)
    uses = torch.zeros(4)
    for row in probability:
        uses[row.topk(2).indices] += 1
    assert count == 10
    torch.testing.assert_close(found[0], 4 * (uses / 20 * probability.mean(0)).sum())
    torch.testing.assert_close(found[1], score.exp().sum(-1).log().square().mean())
    torch.testing.assert_close(found[2:], uses / 20)


def test_the_balance_loss_is_1_when_all_experts_are_used_alike():
    made = layer(top_k=1)
    with torch.no_grad():
        made.router.weight.zero_()
        made.router.weight[:, :4] = 50 * torch.eye(4)
    x = torch.eye(24)[:4][None]
    _, found = made(x, torch.full((4,), 0.25))
    assert found[0].item() == pytest.approx(1.0)
    _, all_to_one = made(x[:, :1].expand(1, 4, 24), torch.full((4,), 0.25))
    assert all_to_one[0].item() == pytest.approx(4.0)


def test_every_second_block_has_experts_with_a_stride_of_2(model):
    assert [isinstance(block.mlp, MoE) for block in model.blocks] == [False, True, False, True]
    assert all(isinstance(block.mlp, MoE) for block in build(GPTConfig(**SHAPE), 100).blocks)


@pytest.mark.parametrize("lengths", [(60,), (5, 30, 9, 16)])
def test_changing_later_tokens_leaves_earlier_states_equal_when_one_expert_is_crowded(model, pack, windows, lengths):
    with torch.no_grad():  # where places are limited, a crowd is what lets later tokens push earlier ones out
        for block in (model.blocks[1], model.blocks[3]):
            block.mlp.router.weight[0] *= 5
    batch = pack(windows(*lengths), windows(sum(lengths)))
    before = states(model, batch)
    for t in (1, 19, 44, 59):
        batch.token_BT[:, t:] = torch.randint(7, 100, batch.token_BT[:, t:].shape)
        after = states(model, batch)
        torch.testing.assert_close(after[:, :t], before[:, :t], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(after[:, t:], before[:, t:])
        before = after


def test_a_window_gives_the_same_states_alone_padded_and_packed(model, pack, windows):
    window, other, short = windows(24, 31, 5)
    alone = states(model, pack([window]))[0]
    for batch, row, start in [
        (pack([window], width=60), 0, 0),
        (pack([short, window, other], [other, short, short]), 0, 5),
        (pack([other, short], [short, window], [window, other]), 1, 5),
    ]:
        torch.testing.assert_close(states(model, batch)[row, start : start + 24], alone, atol=1e-5, rtol=1e-5)


def test_evaluation_is_deterministic_and_noisy_training_is_not(pack, windows):
    made = build(GPTConfig(**SHAPE, noisy_router=True), 100)
    batch = pack(windows(30, 30))
    assert not torch.equal(states(made, batch), states(made, batch))
    made.eval()
    assert torch.equal(states(made, batch), states(made, batch))


def test_noise_draws_experts_by_their_probabilities():
    made = layer(top_k=1, noisy=True).train()
    score = torch.tensor([0.5, 0.25, 0.125, 0.125]).log().expand(20000, 4)
    expert, gate = made.choose(score)
    torch.testing.assert_close(expert.flatten().bincount() / 20000, score[0].exp(), atol=0.02, rtol=0)
    torch.testing.assert_close(gate, score.exp().gather(-1, expert))


def test_losses_and_loads_are_returned_and_do_not_count_padding(model, pack, windows):
    model.train()
    window, other = windows(24, 31)
    found = [
        model(**batch.inputs())
        for batch in (pack([window, other]), pack([window], [other, torch.zeros(0).long()], width=60))
    ]
    for one, two in ((found[0].losses, found[1].losses), (found[0].metrics, found[1].metrics)):
        assert one.keys() == two.keys()
        for name in one:
            torch.testing.assert_close(one[name], two[name], atol=1e-4, rtol=1e-4)
    assert set(found[0].losses) == {"balance", "router_z"}
    assert all(total.requires_grad and count == 55 for total, count in found[0].losses.values())
    loads = [found[0].metrics[f"expert_load_{e}"] for e in range(4)]
    assert not any(total.requires_grad for total, _ in loads)
    assert sum(total / count for total, count in loads).item() == pytest.approx(1.0)
    assert (found[0].metrics["expert_load_max"][0] / 55).item() >= 1


def test_two_models_keep_their_losses_apart_and_evaluation_has_none(pack, windows):
    one, two = build(GPTConfig(**SHAPE), 100), build(GPTConfig(**SHAPE), 100)
    batch = pack(windows(30))
    first = one(**batch.inputs()).losses["balance"][0]
    two(**batch.inputs())
    torch.testing.assert_close(one(**batch.inputs()).losses["balance"][0], first)
    assert one.eval()(**batch.inputs()).losses == {}


def test_a_weight_of_zero_leaves_a_loss_out(pack, windows):
    made = build(GPTConfig(**SHAPE, router_z_weight=0.0), 100)
    assert set(made(**pack(windows(30)).inputs()).losses) == {"balance"}


def test_the_objective_logs_them_apart_from_its_own_loss(model, pack, windows):
    batch, objective = pack(windows(30, 20)), objective_of("next_token", 32)
    plain = objective.loss(model, batch)
    loss = objective.loss(model.train(), batch)
    auxiliary, count = loss.parts["auxiliary"]
    assert auxiliary > 0
    assert "auxiliary" not in plain.parts
    assert {"balance", "router_z", "expert_load_0", "expert_load_max"} <= set(loss.parts)
    torch.testing.assert_close(loss.total - auxiliary, plain.total)
    assert count == loss.count == 48


@pytest.mark.parametrize("top_k", [1, 2])
def test_gradients_reach_every_parameter_with_checkpointing_as_without(pack, windows, top_k):
    made = build(GPTConfig(**SHAPE, top_k=top_k), 100)
    batch, objective = pack(windows(30, 20), windows(60)), objective_of("next_token", 32)
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            made.gradient_checkpointing_enable()
        made.zero_grad()
        objective.loss(made, batch).total.backward()
        grads.append([weight.grad.clone() for weight in made.parameters()])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(checkpointed, plain, atol=1e-4, rtol=1e-4)
        assert plain.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_the_product_in_float32_to_the_last_bit(dtype):
    mlp = build(GPTConfig(**SHAPE), 100).to(dtype).blocks[1].mlp
    x = torch.randn(50, 32, dtype=dtype)
    expected = torch.nn.functional.linear(x.float(), mlp.router.weight.float())
    assert torch.equal(mlp.scores(x), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mlp.scores(x), expected)


def test_routing_stays_in_float32_under_autocast(pack, windows):
    made = build(GPTConfig(**SHAPE), 100)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = made(**pack(windows(30)).inputs())
        assert made.blocks[0].mlp.scores(torch.randn(5, 32, dtype=torch.bfloat16)).dtype == torch.float32
    assert output.losses["balance"][0].dtype == torch.float32
    assert torch.isfinite(output.last_hidden_state).all()


def test_experts_start_by_their_inputs_and_not_by_their_number():
    for num_experts in (2, 8):
        made = build(GPTConfig(num_layers=2, width=192, num_experts=num_experts), 100).blocks[0].mlp
        assert made.experts.up_proj.weight.std().item() == pytest.approx((3 * 192) ** -0.5, rel=0.03)
        assert made.experts.down_proj.weight.std().item() == pytest.approx((3 * 512) ** -0.5 / 2, rel=0.03)
        assert made.router.weight.std().item() == pytest.approx(0.02, rel=0.15)


def test_saved_and_loaded_it_is_the_same_model(model, pack, windows, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    batch = pack(windows(40))
    assert torch.equal(states(loaded, batch), states(model, batch))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"top_k": 5}, "top_k is 5; it must be at least 1 and at most num_experts, 4"),
        ({"top_k": 0}, "top_k is 0"),
        ({"num_experts": -1}, "num_experts is -1"),
        ({"stride": 5}, "stride is 5, so none of the 4 layers"),
        ({"stride": 0}, "stride is 0"),
        ({"balance_weight": -1.0}, "must not be negative"),
    ],
)
def test_experts_that_cannot_be_are_one_clear_error(wrong, message):
    with pytest.raises(ConfigError, match=message):
        build(GPTConfig(**(SHAPE | wrong)), 100)
