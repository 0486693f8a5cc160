"""Token tables that start from code vectors keep their rows through everything that happens to a model."""

import numpy as np
import pytest
import torch
from ehr_core.errors import ConfigError, FormatError
from ehr_core.formats.folder import Manifest, new_folder, write_json, write_manifest
from ehr_core.formats.vocabulary import Token, Vocabulary
from ehr_models import bert, gpt
from ehr_models.bert_settings import BertConfig, CodeVectorsConfig
from ehr_models.code_vectors import start_from_vectors
from ehr_models.settings import GPTConfig
from safetensors.numpy import save_file
from transformers import AutoModel

VOCABULARY = Vocabulary.build([Token(f"C{n}", "code") for n in range(93)])
GIVEN = np.array([n >= 7 and n % 3 != 0 for n in range(100)])


def folder_of(path, width=24):
    """What ``ehr-embed`` writes."""
    vector = np.random.default_rng(0).normal(size=(100, width)).astype(np.float32) * GIVEN[:, None]
    content = {"vocabulary": VOCABULARY.digest, "width": width}
    with new_folder(path) as partial:
        save_file({"vector_VD": vector}, partial / "vector.safetensors")
        write_json(partial / "origin.json", ["file" if given else "" for given in GIVEN])
        VOCABULARY.save(partial)
        write_manifest(partial, Manifest("code-vectors", 1, ["test"], {}, {}, content))
    return path, torch.from_numpy(vector[GIVEN])


def networks():
    return {
        "bert": bert.build(BertConfig(num_layers=1, width=32, mlp_width=32, weight_init="orthogonal"), 100),
        "gpt": gpt.build(GPTConfig(num_layers=1, width=32), 100),
    }


@pytest.fixture(params=["bert", "gpt"])
def model(request):
    return networks()[request.param].eval()


def rows(model):
    return model.get_input_embeddings().weight[:100][torch.from_numpy(GIVEN)]


@pytest.mark.parametrize("project", [True, False])
def test_given_rows_keep_every_bit(model, project, tmp_path):
    folder, vector = folder_of(tmp_path / "vectors", 24 if project else 32)
    start_from_vectors(model, folder, VOCABULARY, project=project)
    assert torch.equal(rows(model), vector)
    model.init_weights()
    assert torch.equal(rows(model), vector)
    model.tie_weights()
    assert torch.equal(rows(model), vector)
    model.resize_token_embeddings(130)
    assert torch.equal(rows(model), vector)
    model.init_weights()
    assert torch.equal(rows(model), vector)
    model.save_pretrained(tmp_path / "model")
    loaded = AutoModel.from_pretrained(tmp_path / "model")
    assert torch.equal(rows(loaded), vector)
    loaded.init_weights()
    assert torch.equal(rows(loaded), vector)
    token = torch.tensor([[7, 9, 55, 129]])
    assert torch.equal(loaded(token).last_hidden_state.shape == (1, 4, 32) and token, token)
    assert loaded.get_input_embeddings().given[:100].tolist() == GIVEN.tolist()
    assert not loaded.get_input_embeddings().given[100:].any()


def test_other_rows_are_drawn_anew_when_weights_are(model, tmp_path):
    start_from_vectors(model, folder_of(tmp_path / "vectors")[0])
    before = model.get_input_embeddings().weight[:7].clone()
    assert before.std() > 0.1  # as large as the vectors are
    model.init_weights()
    assert not torch.equal(model.get_input_embeddings().weight[:7], before)


def test_the_tied_output_layer_goes_through_the_projection(model, tmp_path):
    start_from_vectors(model, folder_of(tmp_path / "vectors")[0])
    table = model.get_input_embeddings()
    torch.nn.init.normal_(table.projection.weight)
    hidden = torch.randn(5, 32)
    inner = model.head(hidden) if isinstance(model, bert.Bert) else hidden
    expected = inner @ table(torch.arange(100)).T
    if isinstance(model, bert.Bert):
        expected = expected + model.head.bias
    torch.testing.assert_close(model.lm_logits(hidden)[:, :100], expected, atol=1e-4, rtol=1e-4)


def test_projected_rows_start_as_large_as_a_table_of_the_model(model, tmp_path):
    start_from_vectors(model, folder_of(tmp_path / "vectors")[0])
    with torch.no_grad():
        embedded = model.get_input_embeddings()(torch.arange(100))
    assert embedded[:, :24].std().item() == pytest.approx(0.02, rel=0.1)
    assert (embedded[:, 24:] == 0).all()


@pytest.mark.parametrize("freeze", [False, True])
def test_the_table_is_trained_unless_it_is_frozen_and_the_projection_always(model, freeze, tmp_path):
    start_from_vectors(model, folder_of(tmp_path / "vectors")[0], freeze=freeze)
    table = model.get_input_embeddings()
    model.lm_logits(model(torch.tensor([[7, 8, 9]])).last_hidden_state)[..., :100].square().sum().backward()
    assert (table.weight.grad is None) == freeze
    assert table.projection.weight.grad.abs().sum() > 0
    model.save_pretrained(tmp_path / "model")
    loaded = AutoModel.from_pretrained(tmp_path / "model").get_input_embeddings()
    assert loaded.weight.requires_grad != freeze


def test_settings_name_the_folder_and_a_run_can_be_rebuilt_without_it(tmp_path):
    folder, vector = folder_of(tmp_path / "vectors")
    settings = BertConfig(num_layers=1, width=32, code_vectors=CodeVectorsConfig(path=folder))
    model = bert.build(settings, 100)
    assert torch.equal(rows(model), vector)
    assert (settings.code_vectors.path, settings.code_vectors.width) == (None, 24)
    assert settings.code_vectors.digest
    again = bert.build(settings, 100)
    assert not torch.equal(rows(again), vector)
    again.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(rows(again), vector)
    assert again.get_input_embeddings().given.sum() == GIVEN.sum()


def test_vectors_that_do_not_fit_are_one_clear_error(model, tmp_path):
    folder, _ = folder_of(tmp_path / "vectors")
    other = Vocabulary.build([Token(f"D{n}", "code") for n in range(93)])
    with pytest.raises(FormatError, match="another vocabulary"):
        start_from_vectors(model, folder, other)
    with pytest.raises(ConfigError, match="width 24 do not fit embeddings of width 32"):
        start_from_vectors(model, folder, project=False)
    with pytest.raises(FormatError, match="another vocabulary"):
        start_from_vectors(bert.build(BertConfig(), 99), folder)
    with pytest.raises(FormatError):
        start_from_vectors(model, tmp_path / "nothing")
