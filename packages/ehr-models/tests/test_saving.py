"""Saving, loading and resizing."""

import json
import re
import subprocess
import sys

import pytest
import torch
from ehr_core import plugins
from ehr_core.config import from_plain
from ehr_core.errors import ConfigError, FormatError
from ehr_models import load_model
from ehr_models.gpt import GPT, GPTForCausalLM
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("loader", [GPT, AutoModel, AutoModelForCausalLM])
def test_a_saved_model_loads_bit_for_bit(model, tmp_path, loader):
    model.save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path)
    assert isinstance(loaded, GPT)
    assert not loaded.training
    assert same(model, loaded)


def test_the_table_of_tokens_is_saved_once_and_stays_the_output_layer(model, tmp_path):
    model.save_pretrained(tmp_path)
    names = [name for name in load_file(tmp_path / "model.safetensors") if not name.startswith("blocks.")]
    assert sorted(names) == ["embeddings.position.weight", "embeddings.token.weight", "norm.weight"]
    loaded = AutoModel.from_pretrained(tmp_path)
    hidden = torch.randn(4, 32)
    with torch.no_grad():
        loaded.embeddings.token.weight.mul_(2)
    torch.testing.assert_close(loaded.lm_logits(hidden)[:, :100], 2 * model.lm_logits(hidden)[:, :100])


def test_the_config_is_of_its_own_type_and_holds_the_shape(model, tmp_path):
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.model_type, config.vocab_size, config.hidden_size) == ("ehr-gpt", 100, 32)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "ehr-gpt"


def test_a_causal_language_model_of_transformers_gives_logits_and_a_mean_loss(model, windows, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, GPTForCausalLM)
    token = torch.stack(windows(20, 20))
    output = loaded(token, labels=token)
    expected = model.lm_logits(model(token).last_hidden_state)
    torch.testing.assert_close(output.logits, expected)
    by_hand = -expected[:, :-1].log_softmax(-1).gather(-1, token[:, 1:, None]).mean()
    torch.testing.assert_close(output.loss, by_hand)


@pytest.mark.parametrize("size", [99, 120, 500])
def test_a_model_of_another_vocabulary_is_refused(model, tmp_path, size):
    model.save_pretrained(tmp_path)
    with pytest.raises(FormatError, match=rf"vocabulary of 100 tokens, not {size}"):
        GPT.from_pretrained(tmp_path, vocab_size=size)
    with pytest.raises(FormatError, match=rf"vocabulary of 100 tokens, not {size}"):
        AutoModel.from_pretrained(tmp_path, vocab_size=size)
    assert same(model, GPT.from_pretrained(tmp_path, vocab_size=100))


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("missing", lambda tensors: tensors.pop("blocks.1.mlp.up_proj.weight")),
        ("unexpected", lambda tensors: tensors.update(extra=torch.ones(2))),
        ("mismatched", lambda tensors: tensors.update({"embeddings.token.weight": torch.ones(64, 32)})),
    ],
)
def test_tensors_that_do_not_fit_are_refused_and_not_drawn_at_random(model, tmp_path, what, change):
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FormatError, match=f"1 {what} tensors"):
        AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("size", [50, 99, 101, 128, 129, 300])
def test_resizing_keeps_old_rows_bit_for_bit(model, tmp_path, size):
    before = model.embeddings.token.weight.detach().clone()
    model.resize_token_embeddings(size)
    kept = min(size, 100)
    rows = (size + 63) // 64 * 64
    after = model.embeddings.token.weight
    assert torch.equal(after[:kept], before[:kept])
    assert after.shape == (rows, 32)
    assert not torch.equal(after[kept:][:5], before[kept:][:5]) or size == 50
    found = model.lm_logits(model(torch.tensor([[size - 1]])).last_hidden_state)
    assert torch.isfinite(found[..., :size]).all()
    assert (found[..., size:] == -torch.inf).all()
    model.save_pretrained(tmp_path)
    assert same(model, AutoModel.from_pretrained(tmp_path))


def test_resizing_by_the_mean_is_refused(model):
    with pytest.raises(ConfigError, match="mean_resizing"):
        model.resize_token_embeddings(200, mean_resizing=True)


def test_a_frozen_table_stays_frozen_when_resized(model):
    model.embeddings.token.weight.requires_grad_(False)
    model.resize_token_embeddings(200)
    assert not model.embeddings.token.weight.requires_grad


def test_loading_does_not_ask_the_network(monkeypatch):
    import socket

    tried = []
    monkeypatch.setattr(socket.socket, "connect", lambda *_: tried.append(1))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: tried.append(1))
    with pytest.raises(FormatError, match="nobody/nothing is not a folder"):
        GPT.from_pretrained("nobody/nothing")
    assert tried == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt", "bert", "hf"])
def test_each_block_of_a_saved_models_readme_loads_it_in_a_fresh_process(name, tmp_path):
    settings = from_plain("model", {"name": name, "num_layers": 1, "num_heads": 2, "width": 16})
    model = plugins.build("model", settings, vocabulary_size=100, columns=[]).eval()
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    token = torch.arange(7, 20)[None]
    torch.save(model(token).last_hidden_state, tmp_path / "expected.pt")
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    assert len(blocks) == 2
    for block in blocks:
        check = "import torch\nfound = model(torch.arange(7, 20)[None]).last_hidden_state\n"
        check += f"assert torch.equal(found, torch.load({str(tmp_path / 'expected.pt')!r}))\n"
        script = block.replace("FOLDER", str(folder)) + check
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_what_is_no_model_of_ours_is_refused_and_never_executed(model, tmp_path):
    with pytest.raises(FormatError, match=r"config\.json is missing"):
        load_model(tmp_path)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for kind in ("bert", None):
        (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": kind}))
        with pytest.raises(FormatError, match=f"type {kind!r}, and ehr-models has ehr-gpt, ehr-bert, ehr-hf"):
            load_model(tmp_path)
    (tmp_path / "harm.py").write_text("raise SystemExit('executed')")
    (tmp_path / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "harm.Harm"}}))
    assert isinstance(load_model(tmp_path), GPT)


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, ehr_models; print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
