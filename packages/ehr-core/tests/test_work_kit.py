"""Each check of executors, trackers and commands passes on a right one and fails on one that breaks what it checks."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from ehr_core import config
from ehr_core.testing import work_checks


@dataclass
class Settings:
    """None."""

    name: str = "part"


def component(target):
    return SimpleNamespace(name="part", load=lambda: target, config=Settings)


class Serial:
    def __init__(self, settings):
        pass

    def map(self, function, items):
        return [function(item) for item in items]


class Backwards(Serial):
    def map(self, function, items):
        return super().map(function, items)[::-1]


class Invents(Serial):
    def map(self, function, items):
        return super().map(function, items) or [None]


class Swallows(Serial):
    def map(self, function, items):
        try:
            return super().map(function, items)
        except Exception:
            return [None]


class Renames(Serial):
    def map(self, function, items):
        try:
            return super().map(function, items)
        except Exception as error:
            raise work_checks.EhrError("a worker failed") from error


EXECUTORS = [
    (Backwards, "results do not come in the order of the items"),
    (Invents, "no items gave results"),
    (Swallows, "an error in a piece of work came out as ''"),
    (Renames, "it has to be the EhrError of the item"),
]


@pytest.mark.parametrize(("wrong", "message"), EXECUTORS)
def test_a_wrong_executor_is_told_what_is_wrong(wrong, message, tmp_path):
    work_checks.check_executor("executor", component(Serial), tmp_path)
    with pytest.raises(AssertionError, match=message):
        work_checks.check_executor("executor", component(wrong), tmp_path)


class Tracker:
    def __init__(self, settings):
        pass

    def start(self, folder, settings, step, stage):
        self.file = (folder / "log.txt").open("a")

    def log(self, step, values):
        self.file.write(f"{step} {values}\n")

    def artifact(self, path, name):
        pass

    def finish(self, status):
        self.file.close()


class CannotGoOn(Tracker):
    def start(self, folder, settings, step, stage):
        super().start(folder, settings, step, stage)
        (folder / "begun").mkdir()


class NoNan(Tracker):
    def log(self, step, values):
        assert all(value == value for value in values.values()), "a value is NaN"


class TakesAway(Tracker):
    def artifact(self, path, name):
        path.write_text("")


class FinishesOnce(Tracker):
    def finish(self, status):
        assert not self.file.closed, "finished already"
        self.file.close()


TRACKERS = [
    (CannotGoOn, FileExistsError, "begun"),
    (NoNan, AssertionError, "a value is NaN"),
    (TakesAway, AssertionError, "an artifact that is kept stays where it was"),
    (FinishesOnce, AssertionError, "finished already"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), TRACKERS)
def test_a_wrong_tracker_is_told_what_is_wrong(wrong, error, message, tmp_path):
    for name, part in (("right", Tracker), ("wrong", wrong)):
        (tmp_path / name).mkdir()
        if part is Tracker:
            work_checks.check_tracker("tracker", component(part), tmp_path / name)
            continue
        with pytest.raises(error, match=message):
            work_checks.check_tracker("tracker", component(part), tmp_path / name)


def test_a_command_whose_help_or_refusal_is_wrong_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "describe", lambda name: "name: part")
    monkeypatch.setattr(config, "compose", lambda name, overrides: {})
    with pytest.raises(AssertionError, match="a setting that does not exist was accepted"):
        work_checks.check_command("command", component(None), tmp_path)

    def refuse(name, overrides):
        raise work_checks.ConfigError("one\ntwo")

    monkeypatch.setattr(config, "compose", refuse)
    with pytest.raises(AssertionError, match="more than one line"):
        work_checks.check_command("command", component(None), tmp_path)
    monkeypatch.setattr(config, "describe", lambda name: "")
    with pytest.raises(AssertionError, match="--help does not show the setting name"):
        work_checks.check_command("command", component(None), tmp_path)
