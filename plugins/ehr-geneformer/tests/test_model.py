"""The network of Geneformer: sizes as published, and Transformer Engine and FP8 where there are none."""

import contextlib
import importlib.util

import pytest
import torch
from ehr_core import config
from ehr_core.errors import ConfigError
from ehr_core.plugins import build
from ehr_geneformer.model import swap_linears, why_no_fp8, without_extra_state
from ehr_geneformer.plugin import GeneformerConfig
from transformers import AutoModel

GENES = 25_426


def small(**settings):
    torch.manual_seed(0)
    chosen = {"num_layers": 2, "num_heads": 2, "width": 32, "mlp_width": 64, "context_length": 64, **settings}
    return build("model", GeneformerConfig(**chosen), vocabulary_size=100, columns=[]).eval()


@pytest.mark.parametrize(
    ("name", "parameters", "shape"),
    [
        ("geneformer_10m", 10_288_722, (256, 6, 4, 512)),
        ("geneformer_106m", 106_775_122, (768, 12, 12, 3072)),
        ("geneformer_4b", 2_909_283_666, (2560, 36, 40, 10_240)),
    ],
)
def test_presets_have_the_parameters_of_the_published_models(name, parameters, shape):
    settings = config.preset("model", name)
    with torch.device("meta"):
        model = build("model", settings, vocabulary_size=GENES, columns=[])
    assert (settings.width, settings.num_layers, settings.num_heads, settings.mlp_width) == shape
    assert (settings.activation, settings.dropout, settings.epsilon) == ("relu", 0.02, 1e-12)
    assert settings.context_length == 2048
    assert model.num_rows == 25_472  # a multiple of 64
    assert model.num_parameters() - (model.num_rows - GENES) * settings.width == parameters


def test_a_saved_model_is_loaded_without_this_package(tmp_path):
    model = small()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded).__name__ == "Bert"
    token = torch.randint(2, 100, (2, 20))
    assert torch.equal(loaded(token).last_hidden_state, model(token).last_hidden_state)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_transformer_engine_without_a_gpu_is_one_clear_error():
    with pytest.raises(ConfigError, match="layers=te needs a CUDA device"):
        small(layers="te")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_fp8_that_cannot_be_becomes_bf16_and_says_so_once(capsys):
    model, plain = small(precision="fp8"), small()
    kinds = []
    model.blocks[0].mlp.up_proj.register_forward_hook(lambda *found: kinds.append(found[2].dtype))
    token = torch.randint(2, 100, (2, 20))
    first, _ = model(token), model(token)
    assert kinds == [torch.bfloat16] * 2
    assert capsys.readouterr().err == "model.precision=fp8 is not possible: the device is cpu; going on in bf16\n"
    exact = plain(token).last_hidden_state
    assert 0 < (first.last_hidden_state - exact).abs().max() < 0.1
    kinds.clear()
    plain(token)
    assert not kinds


class Engine:
    """Remembers whether it was asked for FP8."""

    def __init__(self):
        self.asked = 0

    def fp8_autocast(self, enabled, fp8_recipe):
        assert enabled
        self.asked += 1
        return contextlib.nullcontext()


def test_fp8_is_used_exactly_where_device_layers_and_batch_allow(monkeypatch, capsys):
    """What decides, with a device and an engine that only say what they are."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr("ehr_geneformer.model.recipe", lambda: None)
    cuda = torch.device("cuda")
    assert why_no_fp8(torch.device("cpu"), Engine()) == "the device is cpu"
    assert why_no_fp8(cuda, Engine()) == "A100 has no FP8"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert why_no_fp8(cuda, None) == "model.layers is not te"
    assert why_no_fp8(cuda, Engine()) is None
    # From here on the device is taken for one that has FP8.
    monkeypatch.setattr("ehr_geneformer.model.why_no_fp8", lambda device, engine: None)
    model = small(precision="fp8").train()
    model.engine = Engine()
    whole, odd = torch.ones(2, 12, dtype=torch.int64), torch.ones(1, 13, dtype=torch.int64)
    model(whole)
    assert (model.engine.asked, capsys.readouterr().err) == (1, "")
    for _ in range(2):
        model(odd)
    assert model.engine.asked == 1
    assert capsys.readouterr().err.count("no multiple of 8 cannot be computed so; going on in bf16") == 1
    model.gradient_checkpointing_enable()
    model(whole)
    assert model.engine.asked == 1
    assert "gradient checkpointing" in capsys.readouterr().err
    model.eval()(whole)
    assert model.engine.asked == 2


def test_widths_that_fp8_cannot_have_are_refused():
    with pytest.raises(ConfigError, match="multiples of 16"):
        small(width=24, precision="fp8")
    with pytest.raises(ConfigError, match="layers is 'flash'"):
        small(layers="flash")


class StatefulLinear(torch.nn.Linear):
    """A linear layer with the extra state that Transformer Engine's has."""

    def get_extra_state(self):
        return torch.ones(3)

    def set_extra_state(self, state):
        raise AssertionError


def test_other_linear_layers_keep_weights_names_and_results():
    model, plain = small(), small()
    swap_linears(model, without_extra_state(StatefulLinear))
    swapped = [module for module in model.modules() if isinstance(module, StatefulLinear)]
    assert len(swapped) == 2 * 6
    token = torch.randint(2, 100, (2, 20))
    assert torch.equal(model(token).last_hidden_state, plain(token).last_hidden_state)
    assert model.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(plain.state_dict(), strict=True)


def why_no_engine():
    if not torch.cuda.is_available():
        return "no CUDA device"
    return "" if importlib.util.find_spec("transformer_engine") else "Transformer Engine is not installed"


@pytest.mark.skipif(bool(why_no_engine()), reason=f"parity with Transformer Engine: {why_no_engine()}")
def test_transformer_engine_layers_give_the_same_results():
    model, plain = small(layers="te").cuda(), small().cuda()
    plain.load_state_dict(model.state_dict())
    token = torch.randint(2, 100, (4, 64), device="cuda")
    mask = torch.ones_like(token)
    mask[1, 40:] = 0
    found, expected = (net(token, attention_mask=mask).last_hidden_state for net in (model, plain))
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=2e-4, rtol=1e-3)
