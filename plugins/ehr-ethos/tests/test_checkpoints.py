"""Checkpoints of EHR_FM and ETHOS: the same logits here, nothing executed, back again unchanged."""

import os
from collections.abc import Callable

import pytest
import torch
from ehr_core.errors import ConfigError, FormatError
from ehr_core.formats.run import Run
from ehr_core.plugins import build
from ehr_ethos import checkpoints
from ehr_ethos.plugin import ExportConfig, ImportConfig
from ehr_ethos.runs import export_checkpoint, import_checkpoint
from ehr_models.settings import GPTConfig
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForCausalLM, GPT2Config

D, HEADS, LAYERS, POSITIONS, ROWS = 24, 4, 2, 32, 128
TOKENS = [
    *("GENDER//M", "GENDER//F", "Q1", "Q2", "5m-15m", "=6mt", "MEDS_DEATH", "TIMELINE_END"),
    *(f"LAB//{i}" for i in range(92)),
]
STATE = dict[str, torch.Tensor]


def theirs(experts: int = 0) -> STATE:
    """A state dict of EHR_FM, with weights that are large enough to tell tokens apart."""
    torch.manual_seed(1)
    table = torch.randn(ROWS, D)
    state = {"transformer.wte.weight": table, "transformer.wpe.weight": torch.randn(POSITIONS, D)}
    for i in range(LAYERS):
        p = f"transformer.h.{i}."
        state[p + "ln_1.weight"], state[p + "ln_2.weight"] = 1 + 0.2 * torch.randn(2, D)
        state[p + "attn.c_attn.weight"] = 0.3 * torch.randn(3 * D, D)
        state[p + "attn.c_proj.weight"] = 0.3 * torch.randn(D, D)
        if experts:
            inner = int(4 * D * 2 / 3)
            state[p + "router.w_g.weight"] = torch.randn(experts, D)
            state[p + "router.threshold_train"] = state[p + "router.threshold_eval"] = torch.tensor([1e-9, 0.2])
            state[p + "experts.c_fc"] = 0.3 * torch.randn(experts, D, 2 * inner)
            state[p + "experts.c_proj"] = 0.3 * torch.randn(experts, inner, D)
            state[p + "experts.geglu.mult_bias"] = 1 + 0.3 * torch.randn(inner)
        else:
            state[p + "mlp.c_fc.weight"] = 0.3 * torch.randn(4 * D, D)
            state[p + "mlp.c_proj.weight"] = 0.3 * torch.randn(D, 4 * D)
    return state | {"transformer.ln_f.weight": 1 + 0.2 * torch.randn(D), "lm_head.weight": table}


def original(state: STATE, token_T: torch.Tensor) -> torch.Tensor:
    """Logits (T, rows) of the network as the papers' code computes them, for one window, written plainly."""
    x = state["transformer.wte.weight"][token_T] + state["transformer.wpe.weight"][: len(token_T)]
    hidden = torch.ones(len(token_T), len(token_T)).triu(1).bool()
    for i in range(LAYERS):
        w = {n.removeprefix(f"transformer.h.{i}."): v for n, v in state.items() if n.startswith(f"transformer.h.{i}.")}
        y = functional.layer_norm(x, (D,), w["ln_1.weight"])
        q, k, v = (y @ w["attn.c_attn.weight"].T).split(D, dim=1)
        heads = []
        for h in range(HEADS):
            one = slice(h * D // HEADS, (h + 1) * D // HEADS)
            score = q[:, one] @ k[:, one].T / (D // HEADS) ** 0.5
            heads.append(score.masked_fill(hidden, -torch.inf).softmax(-1) @ v[:, one])
        x = x + torch.cat(heads, 1) @ w["attn.c_proj.weight"].T
        y = functional.layer_norm(x, (D,), w["ln_2.weight"])
        if "mlp.c_fc.weight" in w:
            x = x + functional.gelu(y @ w["mlp.c_fc.weight"].T) @ w["mlp.c_proj.weight"].T
        else:
            x = x + mixture(y, w)
    return functional.layer_norm(x, (D,), state["transformer.ln_f.weight"]) @ state["lm_head.weight"].T


def mixture(y: torch.Tensor, w: STATE) -> torch.Tensor:
    """EHR_FM's experts, were there a place for every token and no chance in the second choice."""
    gate, chosen = (y @ w["router.w_g.weight"].T).softmax(-1).topk(2)
    out = torch.zeros_like(y)
    for t in range(len(y)):
        for weight, e in zip(gate[t] / gate[t].sum(), chosen[t], strict=True):
            value, inner = (y[t] @ w["experts.c_fc"][e]).chunk(2)
            out[t] += weight * (
                (functional.gelu(inner) * value * w["experts.geglu.mult_bias"]) @ w["experts.c_proj"][e]
            )
    return out


def configs(**more) -> dict:
    return {"n_head": HEADS, "resid_pdrop": 0.3, "activation_function": "gelu", "n_embd": D, **more}


def ehr_fm(state: STATE, **more) -> dict:
    return {
        "iter_num": 7000,
        "model": state,
        "optimizer": {"state": {}, "param_groups": []},
        "best_val_loss": torch.tensor(1.5),
        "model_configs": OmegaConf.create(configs(**more)),
        "vocab_stoi": {token: i for i, token in enumerate(TOKENS)},
        "hydra_config_full": OmegaConf.create({"seed": 42, "train": {"lr": 6e-4, "betas": [0.9, 0.95]}}),
    }


def ethos(state: STATE) -> dict:
    config = GPT2Config(n_head=HEADS, n_embd=D, activation_function="gelu", resid_pdrop=0.3, bias=False)
    vocab = {token: i for i, token in enumerate(TOKENS)}
    return {"iter_num": 7000, "model": state, "model_config": config, "vocab": vocab, "best_val_loss": 1.5}


def as_conv(state: STATE) -> STATE:
    """Matrices of blocks as transformers' Conv1D keeps them."""
    return {n: v.T.contiguous() if ".h." in n and v.dim() == 2 and ".ln_" not in n else v for n, v in state.items()}


def wrapped(state: STATE) -> STATE:
    """Names as ``torch.compile`` around DDP leaves them, with the mask that slow attention registers."""
    found = {f"_orig_mod.module.{name}": value for name, value in state.items()}
    return found | {"_orig_mod.module.transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4)}


def logits(folder, token_T):
    run = Run(folder)
    model = build("model", checkpoint_settings(run), vocabulary_size=len(run.vocabulary), columns=[])
    content = torch.load(folder / "checkpoints" / "best_model.pt", weights_only=True)
    model.load_state_dict(content["model"])
    model.eval()
    with torch.no_grad():
        return model.lm_logits(model(token_T[None]).last_hidden_state)[0]


def checkpoint_settings(run):
    from ehr_core.config import from_plain

    return from_plain("model", run.settings["model"])


@pytest.fixture
def save(tmp_path):
    def save(content):
        torch.save(content, tmp_path / "best_model.pt")
        return tmp_path / "best_model.pt"

    return save


@pytest.mark.parametrize(
    ("make", "change"),
    [(ehr_fm, dict), (ehr_fm, as_conv), (ehr_fm, wrapped), (ethos, dict), (ethos, as_conv)],
)
def test_a_dense_model_has_the_logits_of_its_own_code(
    save, tmp_path, make: Callable[[STATE], dict], change: Callable[[STATE], STATE]
):
    state = theirs()
    import_checkpoint(ImportConfig(checkpoint=str(save(make(change(state)))), output=str(tmp_path / "run")))
    token_T = torch.randint(0, 100, (POSITIONS,))
    expected, found = original(state, token_T), logits(tmp_path / "run", token_T)
    assert expected.std() > 1
    torch.testing.assert_close(found[:, :100], expected[:, :100], atol=1e-3, rtol=1e-4)
    assert torch.isneginf(found[:, 100:]).all()


def test_a_mixture_keeps_its_weights(save, tmp_path):
    state = theirs(experts=4)
    path = save(ehr_fm(state, n_experts=4, top_k=2, use_aux_loss=True))
    import_checkpoint(ImportConfig(checkpoint=str(path), output=str(tmp_path / "run")))
    token_T = torch.randint(0, 100, (POSITIONS,))
    torch.testing.assert_close(
        logits(tmp_path / "run", token_T)[:, :100], original(state, token_T)[:, :100], atol=1e-3, rtol=1e-4
    )
    settings = checkpoint_settings(Run(tmp_path / "run"))
    assert (settings.num_experts, settings.top_k, settings.router_z_weight) == (4, 2, 0.0)


def test_the_run_folder_says_what_it_is(save, tmp_path):
    path = save(ehr_fm(theirs()))
    import_checkpoint(ImportConfig(checkpoint=str(path), output=str(tmp_path / "run")))
    run = Run(tmp_path / "run")
    assert [entry.token for entry in run.vocabulary.tokens] == TOKENS
    kinds = [entry.kind for entry in run.vocabulary.tokens[:9]]
    assert kinds == ["static", "static", "quantile", "quantile", "interval", "interval", "code", "end", "code"]
    assert run.vocabulary.tokens[6].codes == ("MEDS_DEATH",)
    assert run.settings["model"]["dropout"] == 0.3
    assert load_file(run.model / "model.safetensors")["norm.weight"].shape == (D,)
    assert AutoModelForCausalLM.from_pretrained(run.model)(torch.tensor([[1, 2]])).logits.shape == (1, 2, 128)


@pytest.mark.parametrize("experts", [0, 4])
def test_an_exported_run_is_the_checkpoint_that_was_imported(save, tmp_path, experts):
    state = theirs(experts)
    path = save(ehr_fm(state, **({"n_experts": 4, "top_k": 2} if experts else {})))
    import_checkpoint(ImportConfig(checkpoint=str(path), output=str(tmp_path / "run")))
    export_checkpoint(ExportConfig(run=str(tmp_path / "run"), output=str(tmp_path / "out" / "best_model.pt")))
    found = torch.load(tmp_path / "out" / "best_model.pt", weights_only=True)
    keys = "iter_num model optimizer scaler best_val_loss model_configs vocab_stoi hydra_config_full"
    assert set(found) == set(keys.split())
    assert (found["iter_num"], found["model_configs"]["n_head"]) == (7000, HEADS)
    assert found["vocab_stoi"] == {token: i for i, token in enumerate(TOKENS)}
    assert found["model"].keys() == state.keys()
    for name, value in state.items():
        same = slice(0, 100) if name.startswith(("transformer.wte", "lm_head")) else slice(None)
        if "mult_bias" not in name and "c_proj" not in name:
            assert torch.equal(found["model"][name][same], value[same])
    token_T = torch.randint(0, 100, (POSITIONS,))
    one, other = original(found["model"], token_T), original(state, token_T)
    torch.testing.assert_close(one[:, :100], other[:, :100], atol=1e-3, rtol=1e-4)


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class Foreign:
    pass


def test_nothing_in_a_checkpoint_is_executed(save, tmp_path):
    marker = tmp_path / "executed"
    path = save(ehr_fm(theirs()) | {"optimizer": Malicious(marker)})
    with pytest.raises(FormatError, match=r"object of (posix|nt).system, which is not accepted"):
        checkpoints.read(path)
    assert not marker.exists()
    with pytest.raises(FormatError, match="Foreign, which is not accepted; save it again with plain numbers") as raised:
        checkpoints.read(save(ehr_fm(theirs()) | {"optimizer": Foreign()}))
    assert "weights_only" not in str(raised.value)


def test_configs_are_read_without_the_classes_that_wrote_them(save, monkeypatch):
    path = save(ethos(theirs()))
    monkeypatch.setattr(GPT2Config, "__init__", lambda *_, **__: pytest.fail("it was made"))
    monkeypatch.setattr(GPT2Config, "__setstate__", lambda *_: pytest.fail("it was filled"), raising=False)
    assert checkpoints.read(path).settings.num_heads == HEADS


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda c: c.pop("model"), FormatError, "no state dict under the key model"),
        (lambda c: c.pop("vocab_stoi"), FormatError, "no vocabulary; give vocabulary=FILE"),
        (lambda c: c["vocab_stoi"].update(TWICE=3), FormatError, "ids of its vocabulary are not 0 to 100"),
        (lambda c: c.update(model_configs={}), FormatError, "how many attention heads it has; give num_heads=N"),
        (lambda c: c.update(model_configs=configs(activation_function="gelu_new")), ConfigError, "'gelu_new'"),
        (lambda c: c["model"].update({"transformer.h.0.mlp.c_fc.bias": torch.ones(96)}), ConfigError, "is not zero"),
        (lambda c: c["model"].update({"lm_head.weight": torch.ones(ROWS, D)}), ConfigError, "not the token table"),
        (lambda c: c["model"].update({"encoder.h.0.x": torch.ones(2)}), FormatError, "tensor encoder.h.0.x"),
        (lambda c: c["model"].update({"transformer.h.1.new": torch.ones(2)}), FormatError, "tensor new"),
        (lambda c: c["model"].pop("transformer.h.1.attn.c_attn.weight"), FormatError, "block 1 has no attn.c_attn"),
        (lambda c: c["model"].pop("transformer.wpe.weight"), FormatError, "no matrix transformer.wpe.weight"),
        (lambda c: c["model"].pop("transformer.ln_f.weight"), FormatError, "no transformer.ln_f.weight"),
    ],
)
def test_what_is_no_such_network_is_one_clear_error(save, change, kind, message):
    content = ehr_fm(theirs())
    change(content)
    with pytest.raises(kind, match=message) as raised:
        checkpoints.read(save(content))
    assert "\n" not in str(raised.value)


def test_a_damaged_or_missing_file_is_one_clear_error(tmp_path):
    with pytest.raises(FormatError, match="is missing"):
        checkpoints.read(tmp_path / "best_model.pt")
    (tmp_path / "best_model.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(FormatError, match="it is damaged, or holds something else"):
        checkpoints.read(tmp_path / "best_model.pt")


def test_zero_biases_are_left_out_and_a_file_may_give_the_vocabulary(save, tmp_path):
    content = ehr_fm(theirs())
    content["model"]["transformer.h.0.attn.c_attn.bias"] = torch.zeros(3 * D)
    content.pop("vocab_stoi")
    content.pop("model_configs")
    (tmp_path / "vocab_t100.csv").write_text("\n".join(TOKENS) + "\n")
    found = checkpoints.read(save(content), HEADS, tmp_path / "vocab_t100.csv")
    assert (found.tokens, found.settings.num_heads, found.loss) == (TOKENS, HEADS, 1.5)


@pytest.mark.parametrize(
    ("own", "lines", "message"),
    [
        (True, TOKENS[:30], r"has 30 tokens that are not the 100 of the vocabulary in .*; leave vocabulary out"),
        (True, [*TOKENS[:98], TOKENS[99], TOKENS[98]], "has 100 tokens that are not the 100 of the vocabulary"),
        (False, TOKENS[:30], "has 30 tokens, and .* has 128 rows for 65 to 128"),
        (False, TOKENS[:64], "has 64 tokens, and .* has 128 rows for 65 to 128"),
        (False, [f"X{i}" for i in range(129)], "has 129 tokens, and .* has 128 rows for 65 to 128"),
        (False, [*TOKENS, ""], "an empty line or a token twice"),
        (False, [*TOKENS, "Q1"], "an empty line or a token twice"),
    ],
)
def test_a_vocabulary_of_another_checkpoint_is_refused(save, tmp_path, own, lines, message):
    content = ehr_fm(theirs())
    if not own:
        content.pop("vocab_stoi")
    (tmp_path / "vocab.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(FormatError, match=message) as raised:
        checkpoints.read(save(content), vocabulary=tmp_path / "vocab.csv")
    assert "\n" not in str(raised.value)


def test_a_table_that_was_not_rounded_up_wants_as_many_tokens(save, tmp_path):
    content = ehr_fm(theirs())
    content.pop("vocab_stoi")
    for name in ("transformer.wte.weight", "lm_head.weight"):
        content["model"][name] = content["model"][name][:100]
    path = save(content)
    (tmp_path / "vocab.csv").write_text("\n".join(TOKENS))
    assert checkpoints.read(path, vocabulary=tmp_path / "vocab.csv").tokens == TOKENS
    (tmp_path / "vocab.csv").write_text("\n".join(TOKENS[:99]))
    with pytest.raises(FormatError, match=r"has 99 tokens, and .* has 100 rows for 100 to 100"):
        checkpoints.read(path, vocabulary=tmp_path / "vocab.csv")


def test_the_vocabulary_file_of_a_checkpoint_agrees_with_it_in_quotes_too(save, tmp_path):
    content = ehr_fm(theirs())
    names = [f"{name},A" if name.startswith("LAB") else name for name in TOKENS]
    content["vocab_stoi"] = {name: i for i, name in enumerate(names)}
    path = save(content)
    for lines in (names, [f'"{name}"' for name in names]):
        (tmp_path / "vocab.csv").write_text("\n".join(lines) + "\n")
        assert checkpoints.read(path, vocabulary=tmp_path / "vocab.csv").tokens == names


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_vocabulary_that_cannot_be_read_is_one_clear_error(save, tmp_path, content):
    if content:
        (tmp_path / "vocab.csv").write_bytes(content)
    with pytest.raises(FormatError, match=r"vocab.csv is (missing|no text)") as raised:
        checkpoints.read(save(ehr_fm(theirs())), vocabulary=tmp_path / "vocab.csv")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("heads", [0, -4, 2])
def test_heads_that_cannot_be_are_refused(save, heads):
    path = save(ehr_fm(theirs()))
    with pytest.raises(ConfigError, match=f"num_heads is {heads}; .* has 4: give this number or leave it out"):
        checkpoints.read(path, heads)
    assert checkpoints.read(path, 4).settings.num_heads == 4


def test_heads_must_be_at_least_one_where_the_checkpoint_does_not_say(save):
    with pytest.raises(ConfigError, match="num_heads is 0; give at least 1"):
        checkpoints.read(save(ehr_fm(theirs()) | {"model_configs": {}}), 0)


def test_a_run_with_one_expert_a_token_is_not_exported():
    for settings in (GPTConfig(num_experts=3, top_k=1), GPTConfig(num_experts=1, top_k=1)):
        model = build("model", settings, vocabulary_size=100, columns=[])
        with pytest.raises(ConfigError, match="2 experts at least; a run with top_k=1 cannot be exported"):
            checkpoints.to_theirs(model.state_dict(), settings)


def test_a_run_that_ehr_fm_has_no_words_for_is_not_exported(save, tmp_path):
    import_checkpoint(ImportConfig(checkpoint=str(save(ehr_fm(theirs()))), output=str(tmp_path / "run")))
    found = checkpoints.read(tmp_path / "best_model.pt")
    found.settings.positions = "rotary"
    with pytest.raises(ConfigError, match="this run cannot be exported"):
        checkpoints.to_theirs(found.weights, found.settings)
    with pytest.raises(FormatError, match="exists already"):
        export_checkpoint(ExportConfig(run=str(tmp_path / "run"), output=str(tmp_path / "best_model.pt")))
    with pytest.raises(FormatError, match="exists already"):
        import_checkpoint(ImportConfig(checkpoint=str(tmp_path / "best_model.pt"), output=str(tmp_path / "run")))
