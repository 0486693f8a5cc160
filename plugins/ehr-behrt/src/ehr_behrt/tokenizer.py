"""The tokenizer ``behrt``: visits of codes with age, visit and segment (Li et al., BEHRT, Scientific Reports 2020).

As in the paper, [CLS] is first, visits are apart by [SEP], and segments alternate. What differs: [SEP] is there only
when the next visit shows that the last is over (see `ehr_tokenize.grammars.visits`), and age is in days, for a model
to group.
"""

from ehr_tokenize.grammars.visits import Visits


class Behrt(Visits):
    """Visits with the settings of `ehr_behrt.plugin.BehrtConfig`."""
