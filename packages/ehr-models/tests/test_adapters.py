import copy
import json
import warnings

import pytest
import torch
from ehr_core import config
from ehr_core.errors import ConfigError, FormatError
from ehr_core.plugins import build as build_part
from ehr_core.testing.small_network import small_network
from ehr_models.adapter_settings import AdapterConfig
from ehr_models.adapters import LowRank, count_parameters, load, merge, save, target_names, wrap
from ehr_models.bert import build as build_bert
from ehr_models.bert_settings import BertConfig
from ehr_models.gpt import build
from ehr_models.hf import build as build_hf
from ehr_models.hf_settings import HFConfig
from ehr_models.settings import GPTConfig
from peft import LoraConfig, get_peft_model

from .parts import objective_of

WIDTH, V = 32, 100
SHAPE = {"num_layers": 2, "num_heads": 4, "width": WIDTH, "context_length": 64}
FAMILIES = {
    "gpt": lambda: build(GPTConfig(**SHAPE), V),
    "modern": lambda: build(GPTConfig(**SHAPE, norm="rms", mlp="swiglu", positions="rotary", qk_norm=True), V),
    "experts": lambda: build(GPTConfig(**SHAPE, num_experts=4), V),
    "bert": lambda: build_bert(BertConfig(**SHAPE, mlp_width=64), V),
}
TIED = {"tie_word_embeddings": True}
GROWING = {
    "gpt": FAMILIES["gpt"],
    "bert": FAMILIES["bert"],
    "bert, not tied": lambda: build_bert(BertConfig(**SHAPE, mlp_width=64, tied=False), V),
    "llama": lambda: build_hf(HFConfig(**SHAPE), V),
    "llama, tied": lambda: build_hf(HFConfig(**SHAPE, overrides=TIED), V),
    "bert of transformers": lambda: build_hf(HFConfig(**SHAPE, architecture="bert", kind="masked"), V),
    "roberta": lambda: build_hf(HFConfig(**SHAPE, architecture="roberta", kind="masked"), V),
    "distilbert": lambda: build_hf(HFConfig(**SHAPE, architecture="distilbert", kind="masked"), V),
    "modernbert": lambda: build_hf(HFConfig(**SHAPE, architecture="modernbert", kind="masked"), V),
}
NAMES = ("lora", "lora_all", "dora", "rslora")


def preset(name):
    return config.preset("adapter", name)


VARIANTS = {
    **{name: preset(name) for name in NAMES},
    "dropped": AdapterConfig(dropout=0.3, targets="all"),
    "table": AdapterConfig(embeddings=True),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]().eval()


def tokens(rows=3, length=12):
    return torch.randint(7, V, (rows, length), generator=torch.Generator().manual_seed(1))


def logits(model):
    with torch.no_grad():
        return model.lm_logits(model(tokens()).last_hidden_state)[..., :V]


def trained(model):
    """Random numbers in place of what training would find."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn_like(weight)) if "magnitude" not in name else weight.mul_(1.1)
    return model


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fresh_adapter_changes_nothing_and_every_tensor_of_it_learns_and_counts(family, variant):
    before = logits(family)
    model = wrap(family, VARIANTS[variant]).eval()
    close(logits(model), before)
    trained(model)
    after = logits(model)
    assert (after - before).abs().max() > 0.001
    hidden = model(tokens()).last_hidden_state
    (model.lm_logits(hidden)[..., 7:V] * torch.randn(V - 7)).sum().backward()
    named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert all("lora_" in name or "embeddings" in name or "head" in name for name in named)
    assert [name for name, weight in named.items() if weight.grad is None or not weight.grad.any()] == []
    assert all(weight.grad is None for weight in model.parameters() if not weight.requires_grad)
    with torch.no_grad():
        for name, weight in named.items():
            kept = weight.clone()
            weight.add_(torch.randn_like(weight))
            assert not torch.equal(logits(model), after), f"{name} does not reach the output"
            weight.copy_(kept)


@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_equals_unmerged_and_is_a_plain_network_again(family, variant, tmp_path):
    names, kind = set(family.state_dict()), type(family)
    model = trained(wrap(family, VARIANTS[variant])).eval()
    expected = logits(model)
    plain = merge(model)
    assert type(plain) is kind
    assert set(plain.state_dict()) == names
    close(logits(plain), expected)
    plain.save_pretrained(tmp_path)
    assert torch.equal(logits(kind.from_pretrained(tmp_path).eval()), logits(plain))


@pytest.mark.parametrize("targets", ["attention", "feed_forward", "all"])
@pytest.mark.parametrize("rank", [1, 8])
def test_trainable_parameters_are_rank_times_inputs_and_outputs_of_each_layer(targets, rank):
    model = FAMILIES["gpt"]()
    base = sum(weight.numel() for weight in model.parameters())
    attention, feed_forward = 4 * rank * (WIDTH + WIDTH), 2 * rank * (WIDTH + 4 * WIDTH)
    each = {"attention": attention, "feed_forward": feed_forward, "all": attention + feed_forward}[targets]
    found = count_parameters(wrap(model, AdapterConfig(rank=rank, targets=targets)))
    assert found == {"total": base + 2 * each, "trainable": 2 * each, "adapter": 2 * each, "frozen": base}


def test_counts_of_dora_and_a_trained_table_and_of_a_plain_network():
    model = FAMILIES["gpt"]()
    base = sum(weight.numel() for weight in model.parameters())
    assert count_parameters(model) == {"total": base, "trainable": base, "adapter": 0, "frozen": 0}
    low_rank, table = 2 * 4 * 8 * 2 * WIDTH, 128 * WIDTH
    found = count_parameters(wrap(model, AdapterConfig(embeddings=True)))
    assert found == {
        "total": base + low_rank + table,
        "trainable": low_rank + table,
        "adapter": low_rank,
        "frozen": base,
    }
    found = count_parameters(wrap(FAMILIES["gpt"](), preset("dora")))
    assert found["trainable"] == low_rank + 2 * 4 * WIDTH


def test_routers_and_experts_are_not_adapted():
    names = target_names(FAMILIES["experts"](), "all")
    assert len(names) == 8
    assert all("attention" in name for name in names)
    with pytest.raises(ConfigError, match=r"GPT has no linear layer for adapter.targets=feed_forward"):
        wrap(FAMILIES["experts"](), AdapterConfig(targets="feed_forward"))


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peft_by_itself_adapts_routers_and_merged_equals_unmerged(dora, dtype):
    base = FAMILIES["experts"]().to(dtype)
    score = base.blocks[0].mlp.scores(torch.randn(5, WIDTH, dtype=dtype))
    assert score.dtype == torch.float32
    model = trained(get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", use_dora=dora)))
    model.lm_logits(model(tokens()).last_hidden_state)[..., :V].square().mean().backward()
    learning = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    assert [name for name, grad in learning.items() if grad is None or not grad.any()] == []
    assert any("router" in name for name in learning)
    if dtype == torch.float32:
        expected = logits(model.eval())
        close(logits(model.merge_and_unload()), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adapter_comes_back_with_its_head_and_its_table(variant, tmp_path, pack, windows):
    base = FAMILIES["gpt"]().eval()
    fresh = {name: weight.clone() for name, weight in base.state_dict().items()}
    objective = objective_of("classification", WIDTH).eval()
    model = trained(wrap(base, VARIANTS[variant])).eval()
    batch = pack(windows(10, 25), labels=[1.0, 0.0])
    expected, chance = logits(model), objective.predict(model, batch)
    save(model, tmp_path / "adapter", objective)
    again, head = FAMILIES["gpt"]().eval(), objective_of("classification", WIDTH).eval()
    again.load_state_dict(fresh)
    loaded = load(again, tmp_path / "adapter", head)
    assert torch.equal(logits(loaded), expected)
    assert torch.equal(head.predict(loaded, batch), chance)


def shared(model):
    """Names of the parameters that are one."""
    found = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(weight), set()).add(name)
    return [names for names in found.values() if len(names) > 1]


@pytest.fixture(params=GROWING)
def growing(request):
    return GROWING[request.param]().eval()


def test_all_that_was_trained_for_a_grown_vocabulary_comes_back_on_the_base_as_it_was(growing, tmp_path):
    again, shapes = copy.deepcopy(growing), {name: weight.shape for name, weight in growing.named_parameters()}
    growing.resize_token_embeddings(150)
    grown = [name for name, weight in growing.named_parameters() if weight.shape != shapes[name]]
    model = wrap(growing, AdapterConfig(embeddings=True))
    learning = {name.replace("modules_to_save.default.", "") for name, w in model.named_parameters() if w.requires_grad}
    alias = {one: names for names in shared(again) for one in names}
    for name in grown:
        assert any(f"base_model.model.{one}" in learning for one in alias.get(name, {name})), f"{name} learns nothing"
    trained(model).eval()
    ids = torch.tensor([[8, 120, 149]])
    hidden = model(ids).last_hidden_state
    expected = model.lm_logits(hidden)
    save(model, tmp_path / "adapter")
    loaded = load(again, tmp_path / "adapter")
    assert torch.equal(loaded(ids).last_hidden_state, hidden)
    assert torch.equal(loaded.lm_logits(hidden), expected)
    assert again.config.vocab_size == 150


def test_what_was_tied_is_tied_while_it_learns_and_when_it_is_merged(growing, tmp_path):
    ties, before = shared(growing), logits(growing)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*tie")
        model = trained(wrap(growing, AdapterConfig(embeddings=True))).eval()
        step = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
        model.lm_logits(model(tokens()).last_hidden_state)[..., :V].square().mean().backward()
        step.step()
        expected = logits(model)
        with model.disable_adapter():
            assert torch.equal(logits(model), before)
        plain = merge(model).eval()
    close(logits(plain), expected)
    assert shared(plain) == ties
    plain.save_pretrained(tmp_path)
    loaded = type(plain).from_pretrained(tmp_path).eval()
    assert shared(loaded) == ties
    assert torch.equal(logits(loaded), logits(plain))


def test_one_more_adapter_without_a_table_shares_a_tied_base():
    base = GROWING["llama, tied"]().eval()
    model = trained(wrap(base, AdapterConfig(embeddings=True), "table")).eval()
    first = logits(model)
    model = trained(wrap(model, preset("lora"), "plain")).eval()
    second = logits(model)
    assert not torch.allclose(first, second)
    model.set_adapter("table")
    assert torch.equal(logits(model), first)
    close(logits(merge(model)), first)


def test_several_adapters_share_one_base(tmp_path):
    base = FAMILIES["gpt"]().eval()
    plain = logits(base)
    model = trained(wrap(base, preset("lora"), "mortality")).eval()
    first = logits(model)
    model = trained(wrap(model, preset("lora_all"), "readmission")).eval()
    second = logits(model)
    assert not torch.allclose(first, second)
    model.set_adapter("mortality")
    assert torch.equal(logits(model), first)
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    for name in ("mortality", "readmission"):
        save(model, tmp_path / name, name=name)
    fresh = model.unload()
    both = load(load(fresh, tmp_path / "mortality", name="one"), tmp_path / "readmission", name="two")
    assert torch.equal(logits(both), second)
    both.set_adapter("one")
    assert torch.equal(logits(both), first)
    with pytest.raises(ConfigError, match="'one' already"):
        wrap(both, preset("lora"), "one")


def test_an_adapter_for_another_base_is_refused_in_one_line(tmp_path):
    save(wrap(FAMILIES["gpt"](), preset("lora")), tmp_path / "adapter")
    with pytest.raises(
        FormatError, match=r"is an adapter for a base with weights [0-9a-f]{12}, and this model has"
    ) as found:
        load(FAMILIES["gpt"](), tmp_path / "adapter")
    assert "\n" not in str(found.value)


def test_a_head_is_loaded_into_the_objective_it_was_trained_with_and_no_other(tmp_path):
    base = FAMILIES["gpt"]()
    heads = {
        "last": objective_of("classification", WIDTH),
        "mean": objective_of("classification", WIDTH, pooling="mean"),
        "many": objective_of("multilabel", WIDTH),
    }
    model = wrap(copy.deepcopy(base), preset("lora"))
    save(model, tmp_path / "none")
    save(model, tmp_path / "last", heads["last"])
    for folder, name, words in (
        ("last", "mean", "the head of an objective with pooling=last, and this one has pooling=mean; build the one"),
        ("last", "many", "with name=classification, and this one has name=multilabel; build the one"),
        ("none", "last", "none was saved without a head; save it with its objective, or load it without one"),
    ):
        with pytest.raises(FormatError, match=words) as raised:
            load(copy.deepcopy(base), tmp_path / folder, heads[name])
        assert "\n" not in str(raised.value)
    for folder, objective in (("last", None), ("last", objective_of("next_token", WIDTH)), ("last", heads["last"])):
        load(copy.deepcopy(base), tmp_path / folder, objective)
    facts = json.loads((tmp_path / "last" / "adapter.json").read_text())
    (tmp_path / "last" / "adapter.json").write_text(json.dumps({**facts, "vocab_size": 1}))
    with pytest.raises(FormatError, match=r"adapter\.json was changed after it was written"):
        load(copy.deepcopy(base), tmp_path / "last")
    del facts["sha256"], facts["files"]  # as before there were digests
    (tmp_path / "last" / "adapter.json").write_text(json.dumps({**facts, "objective": {"name": "of a plugin"}}))
    with pytest.raises(FormatError, match="name=of a plugin"):
        load(copy.deepcopy(base), tmp_path / "last", heads["last"])
    (tmp_path / "last" / "adapter.json").write_text(json.dumps({k: v for k, v in facts.items() if k != "objective"}))
    with pytest.raises(FormatError, match=r"adapter\.json: \$: object missing required field `objective`"):
        load(copy.deepcopy(base), tmp_path / "last")


def test_a_folder_may_be_text_as_the_readme_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base, objective = FAMILIES["gpt"](), objective_of("classification", WIDTH)
    model = trained(wrap(copy.deepcopy(base), preset("lora")))
    save(model, "ADAPTER", objective)
    assert torch.equal(logits(load(base, "ADAPTER", objective)), logits(model.eval()))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "objective.safetensors"])
def test_damaged_and_missing_tensors_are_one_clear_error_and_leave_the_network_as_it_was(name, tmp_path):
    base, objective = FAMILIES["gpt"](), objective_of("classification", WIDTH)
    save(wrap(copy.deepcopy(base), preset("lora")), tmp_path / "adapter", objective)
    for damage in (lambda path: path.write_bytes(path.read_bytes()[:-9]), lambda path: path.unlink()):
        damage(tmp_path / "adapter" / name)
        with pytest.raises(FormatError, match=rf"{name} is missing or damaged .*; save the adapter again") as raised:
            load(base, tmp_path / "adapter", objective)
        assert "\n" not in str(raised.value)
        assert not any("lora_" in weight for weight in base.state_dict())


def test_saving_an_adapter_that_is_not_there_is_one_clear_error(tmp_path):
    base = FAMILIES["gpt"]()
    with pytest.raises(ConfigError, match="no adapter 'default'; it has none"):
        save(base, tmp_path / "adapter")
    with pytest.raises(ConfigError, match="no adapter 'other'; it has default"):
        save(wrap(base, preset("lora")), tmp_path / "adapter", name="other")


def test_damaged_and_foreign_folders_are_refused(tmp_path):
    base = FAMILIES["gpt"]()
    with pytest.raises(FormatError, match=r"adapter\.json is missing"):
        load(base, tmp_path)
    (tmp_path / "adapter.json").write_text("{}")
    with pytest.raises(FormatError, match=r"adapter\.json: \$: object missing required field `name`"):
        load(base, tmp_path)
    objective = objective_of("next_token", WIDTH)
    model = wrap(base, preset("lora"))
    save(model, tmp_path / "adapter", objective)
    assert not (tmp_path / "adapter" / "objective.safetensors").exists()
    with pytest.raises(FormatError, match="exists already"):
        save(model, tmp_path / "adapter", objective)


def test_settings_that_cannot_be_are_one_clear_error():
    for settings, words in (
        (AdapterConfig(rank=0), "rank is 0"),
        (AdapterConfig(rank=2.5), "rank is 2.5; it must be of type int"),
        (AdapterConfig(targets=["q_proj"]), "must be of type str"),
        (AdapterConfig(targets="head"), "targets is 'head'; it must be one of attention, feed_forward, all"),
    ):
        with pytest.raises(ConfigError, match=words):
            wrap(FAMILIES["gpt"](), settings)


def test_presets_of_the_hook_say_what_they_are_called_for():
    found = {name: preset(name) for name in NAMES}
    assert found["lora"] == AdapterConfig()
    assert found["lora_all"] == AdapterConfig(rank=16, alpha=32, targets="all")
    assert found["dora"] == AdapterConfig(dora=True)
    assert found["rslora"] == AdapterConfig(rank=64, alpha=16, targets="all", rslora=True)
    assert config.preset("adapter", "lora_all", "adapter.rank=2").rank == 2


def test_an_adapter_of_the_hook_saves_which_one_it_is_and_is_loaded_by_that(tmp_path):
    base = FAMILIES["gpt"]()
    adapter = build_part("adapter", config.preset("adapter", "lora_all", "adapter.rank=2"))
    assert isinstance(adapter, LowRank)
    model = trained(adapter.apply(copy.deepcopy(base))).eval()
    adapter.save(model, tmp_path / "adapter")
    facts = json.loads((tmp_path / "adapter" / "adapter.json").read_text())
    assert (facts["name"], facts["settings"]["rank"], facts["settings"]["targets"]) == ("lora", 2, "all")
    again = build_part("adapter", config.from_plain("adapter", facts["settings"]))
    assert torch.equal(logits(again.load(copy.deepcopy(base), tmp_path / "adapter")), logits(model))
    with pytest.raises(FormatError, match="is an adapter with rank=2, and this one has rank=8"):
        build_part("adapter", preset("lora")).load(base, tmp_path / "adapter")
    close(logits(adapter.merge(model)), logits(model))


def test_an_adapted_model_answers_for_the_fields_of_its_contract(family):
    width, limit, provides = family.width, family.max_positions, tuple(family.provides)
    model = LowRank(preset("lora")).apply(family)
    assert (model.width, model.max_positions, tuple(model.provides)) == (width, limit, provides)
    if "cache" in provides:
        assert model.make_cache(2, 8).length == 8


def test_a_strangers_network_is_adapted_by_the_types_and_names_of_its_layers():
    network = small_network(V)
    assert len(target_names(network, "all")) == 2 * 6
    assert len(target_names(network, "attention")) == 2 * 4
    assert target_names(torch.nn.ModuleDict({"output": torch.nn.Linear(4, 4)}), "all") == ["output"]
    for targets in ("attention", "feed_forward", "all"):
        model = trained(wrap(small_network(V), AdapterConfig(targets=targets))).eval()
        before, plain = logits(model), merge(model)
        close(logits(plain), before)
    with pytest.raises(ConfigError, match="SmallNetwork has no get_input_embeddings"):
        wrap(small_network(V), AdapterConfig(embeddings=True))


def test_an_adapter_learns_with_gradient_checkpointing(pack, windows):
    model = FAMILIES["gpt"]()
    model.gradient_checkpointing_enable()
    model = trained(wrap(model, AdapterConfig(targets="all"))).train()
    objective_of("next_token", WIDTH).loss(model, pack(windows(20, 9))).total.backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters() if weight.requires_grad)


def test_an_adapted_model_generates_as_its_merged_one(pack):
    from ehr_core.formats.vocabulary import Token, Vocabulary
    from ehr_models.generation.engine import Engine
    from ehr_models.generation.rows import Prompt
    from ehr_models.generation.settings import GenerationConfig

    vocabulary = Vocabulary.build([Token(f"CODE//{index}", "code") for index in range(V - 7)])
    model = trained(wrap(FAMILIES["gpt"](), preset("lora"))).double()
    prompt, settings = Prompt(1, 2, tokens(1)[0].numpy()), GenerationConfig(draws=2, max_new_tokens=9)

    def draw(network):
        return {one.draw: one.tokens.tolist() for one in Engine(network, vocabulary, settings).generate([prompt])}

    assert draw(model) == draw(merge(model))
