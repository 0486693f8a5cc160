"""Checks of executors, trackers and commands."""

import dataclasses
from pathlib import Path
from typing import Any

from ehr_core.component import Component
from ehr_core.errors import ConfigError, EhrError
from ehr_core.testing.base import Check, small_settings


def _double(value: int) -> int:
    return 2 * value


def _fail(value: int) -> int:
    raise EhrError(f"item {value} is bad")


def check_executor(kind: str, component: Component, folder: Path) -> None:
    """Results keep the order of the items, no items give no results, and an error comes out."""
    executor = component.load()(small_settings(component))
    assert list(executor.map(_double, [3, 1, 2])) == [6, 2, 4], "results do not come in the order of the items"
    assert list(executor.map(_double, [])) == [], "no items gave results"
    found = ""
    try:
        list(executor.map(_fail, [7]))
    except EhrError as error:
        found = str(error)
    assert "7" in found, f"an error in a piece of work came out as {found!r}; it has to be the EhrError of the item"


def check_tracker(kind: str, component: Component, folder: Path) -> None:
    """It takes numbers, NaN too, and artifacts; goes on after a kill; and finishing twice is fine."""
    picture = folder / "picture.txt"
    picture.write_text("a picture")
    place = folder / "run"
    place.mkdir()
    for life, first in (("killed", 0), ("continued", 1)):
        tracker = component.load()(small_settings(component))
        tracker.start(place, {"seed": 1}, first, f"stage of a {life} run")
        tracker.log(first, {"loss": 1.0})
        tracker.log(first + 1, {"loss": float("nan")})
        tracker.artifact(picture, "picture.txt")
    tracker.finish("finished")
    tracker.finish("finished")
    assert picture.read_text() == "a picture", "an artifact that is kept stays where it was"


def check_command(kind: str, component: Component, folder: Path) -> None:
    """The command's settings compose, its help names each of them, and a wrong one is refused in one line."""
    from ehr_core import config

    if component.config is None:
        return
    text = config.describe(component.name)
    names = [field.name for field in dataclasses.fields(component.config) if field.name != "defaults"]
    missing = [name for name in names if f"{name}:" not in text]
    assert not missing, f"--help does not show the setting {missing[0]}"
    refused: Any = None
    try:
        config.compose(component.name, ["no_such_setting_of_any_command=1"])
    except ConfigError as error:
        refused = str(error)
    assert refused is not None, "a setting that does not exist was accepted"
    assert "\n" not in refused, "the error for a wrong setting is more than one line"


CHECKS: dict[str, list[Check]] = {
    "executor": [check_executor],
    "tracker": [check_tracker],
    "command": [check_command],
}
