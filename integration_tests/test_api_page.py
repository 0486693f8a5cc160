"""The page on the Python API: every function is on it, and its blocks run in order."""

import contextlib
import io
import re
from pathlib import Path

import ehr
import pytest

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)


def test_every_function_is_on_the_page():
    named = re.findall(r"^\| `ehr\.(\w+)` \|", PAGE.read_text(), re.M)
    assert sorted(named) == sorted(set(ehr.__all__) - {"EhrError", "settings"})


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the blocks of the page leave, and what each of them printed."""
    found, said = {}, []
    with contextlib.chdir(tmp_path_factory.mktemp("api")):
        for code in BLOCK.findall(PAGE.read_text()):
            with contextlib.redirect_stdout(io.StringIO()) as caught:
                exec(compile(code, str(PAGE), "exec"), found)
            said.append(caught.getvalue())
    return found | {"said": said}


@pytest.mark.slow
def test_the_blocks_of_the_page_give_what_they_say(names):
    assert "Did you mean ethos?" in "".join(names["said"])
    assert names["settings"].tokenizer.num_quantiles == 5
    assert not any(token.token == "Q6" for token in names["store"].vocabulary.tokens)
    assert 0.02 < names["mortality"].array("train").mean() < 0.2
    scored = names["done"].scores.value("in_hospital_mortality", "logistic", "auroc")
    assert names["scores"].value("in_hospital_mortality", "logistic", "auroc") == scored
    for column in ("everyone", "predictions"):
        assert ((names[column].prediction > 0) & (names[column].prediction < 1)).all()
    assert any(said.startswith("60 ") for said in names["said"])
    assert {row["predictor"] for row in names["result"].scores["scores"]} == {"finetuned", "ceiling"}
