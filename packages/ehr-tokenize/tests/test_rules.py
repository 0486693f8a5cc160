"""Templates of rules: what is no field is refused, not taken for text."""

import pytest
from ehr_core.errors import ConfigError
from ehr_tokenize.prepare.preparation import Preparation
from ehr_tokenize.prepare.settings import PrepareConfig, RuleConfig


@pytest.mark.parametrize("text", ["X//{1", "X//1}", "{1}//{0", "X = {value", "{1{0}}"])
def test_a_brace_without_its_pair_is_refused(text):
    with pytest.raises(ConfigError, match=r"^rule 1 \(for LAB//\): .* without its pair; a field is written \{name\}$"):
        Preparation(PrepareConfig(rules=[RuleConfig(codes=["LAB//"], to=[text])]))
