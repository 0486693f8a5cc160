"""The tokenizer ``exmed_bert``: codes with age, visit, entity, sex and region at each position.

After Lentzen et al. (Computer Methods and Programs in Biomedicine 2023). What differs: age is in days, for a model to
group; sex and region come from the train split's values and count from their own time on.
"""

from ehr_tokenize.grammars.visits import Visits


class ExMedBert(Visits):
    """Visits with the settings of `ehr_exmed_bert.plugin.ExMedBertConfig`."""
