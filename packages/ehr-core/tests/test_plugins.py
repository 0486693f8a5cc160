"""The manager refuses what pluggy would let pass in silence."""

import subprocess
import sys
import types

import pytest
from ehr_core import Component, hookimpl
from ehr_core.errors import PluginError
from ehr_core.plugins import KINDS, discover
from ehr_core.plugins import registry as installed


def module(**functions):
    made = types.ModuleType("made_up")
    for name, function in functions.items():
        setattr(made, name, hookimpl(function))
    return made


def metric(name="auroc"):
    return Component(name=name, target="os:getcwd", summary="A metric")


def test_components_are_found_by_kind_and_name():
    found = discover({"mine": module(ehr_metrics=lambda: [metric()])})
    assert found.get("metric", "auroc").load()
    assert found.version("metric", "auroc") == "mine==0"


def test_an_unknown_name_is_answered_with_the_nearest_one():
    found = discover({"mine": module(ehr_metrics=lambda: [metric()])})
    with pytest.raises(PluginError, match=r"no metric is named 'aurok'. Did you mean 'auroc'\? Installed: auroc"):
        found.get("metric", "aurok")


def test_a_misspelt_hook_is_refused():
    with pytest.raises(PluginError, match=r"unknown hook 'ehr_metric' in plugin 'mine'\. Did you mean ehr_metrics"):
        discover({"mine": module(ehr_metric=lambda: [metric()])})


def test_a_hook_with_arguments_is_refused():
    with pytest.raises(PluginError, match="plugin 'mine' from mine was refused"):
        discover({"mine": module(ehr_metrics=lambda config: [metric()])})


def test_two_plugins_with_one_component_name_are_refused():
    one, two = (module(ehr_metrics=lambda: [metric()]) for _ in range(2))
    with pytest.raises(PluginError, match="two plugins provide metric 'auroc'"):
        discover({"one": one, "two": two})


def test_a_baseline_and_a_predictor_cannot_share_a_name():
    """They are chosen in one settings group."""
    with pytest.raises(PluginError, match="two plugins provide predictor 'auroc'"):
        discover({"one": module(ehr_baselines=lambda: [metric()], ehr_predictors=lambda: [metric()])})


def test_something_that_is_no_component_is_refused():
    with pytest.raises(PluginError, match="hook ehr_metrics yielded str"):
        discover({"mine": module(ehr_metrics=lambda: ["auroc"])})


def test_a_target_that_cannot_be_imported_is_named():
    with pytest.raises(PluginError, match="'x' cannot be loaded from 'no_such_module:thing'"):
        Component(name="x", target="no_such_module:thing").load()


PLUGIN = """
[project]
name = "{name}"
version = "1.0"
[project.entry-points.ehr]
{entry} = "{module}"
"""


def install(folder, name, entry, module_name, source):
    """An installed distribution, as importlib.metadata sees it: a module and a dist-info folder on the path."""
    (folder / f"{module_name}.py").write_text(source)
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[ehr]\n{entry} = {module_name}\n")


def ehr(*arguments, path=None, **environment):
    code = "import sys; from ehr_core.cli import main; sys.exit(main(sys.argv[1:]))"
    env = {"PATH": "/usr/bin:/bin", **({"PYTHONPATH": str(path)} if path else {}), **environment}
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=env)


def test_a_broken_plugin_is_reported_and_does_not_take_the_command_down(tmp_path):
    install(tmp_path, "ehr-broken", "broken", "ehr_broken", "import no_such_library")
    done = ehr("plugins", path=tmp_path)
    assert done.returncode == 1
    assert "broken         ehr-broken 1.0" in done.stdout
    assert "No module named 'no_such_library'" in done.stdout
    assert "serial" in done.stdout


def test_two_distributions_with_one_entry_point_name_are_refused(tmp_path):
    install(tmp_path, "ehr-one", "same", "ehr_one", "")
    install(tmp_path, "ehr-two", "same", "ehr_two", "")
    done = ehr("plugins", path=tmp_path)
    assert done.returncode == 1
    assert "two distributions name a plugin 'same': ehr-one and ehr-two" in done.stderr


def test_ehr_plugins_can_be_chosen_by_environment(tmp_path):
    install(tmp_path, "ehr-broken", "broken", "ehr_broken", "import no_such_library")
    done = ehr("plugins", path=tmp_path, EHR_PLUGINS="core")
    assert done.returncode == 0
    assert "broken" not in done.stdout
    done = ehr("plugins", EHR_PLUGINS="nonsense")
    assert "EHR_PLUGINS names nonsense, not installed" in done.stderr


def test_listing_plugins_imports_nothing_heavy():
    code = (
        "import sys; from ehr_core.cli import main; main(['plugins']);"
        "print([m for m in ('torch', 'polars', 'sklearn', 'transformers', 'hydra', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]"), done.stdout.splitlines()[-1]


def test_every_installed_component_says_what_it_is():
    for kind in KINDS:
        for component in installed().components[kind].values():
            assert component.summary, (kind, component.name)
