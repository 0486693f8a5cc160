"""Objectives as the trainer makes them: by the name in their settings, for a vocabulary and what labels ask."""

from ehr_core.config import from_plain
from ehr_core.formats.vocabulary import Token, Vocabulary
from ehr_core.outcomes import Question
from ehr_core.plugins import build, registry

VOCABULARY = Vocabulary.build([Token(f"CODE//{number}", "code") for number in range(93)])
"""100 tokens."""
NAMES = {"multiclass": ("a", "b", "c", "d"), "multilabel": ("x", "y", "z")}


def question_of(kind: str, names: tuple[str, ...] | None = None) -> Question:
    """Labels of a kind, with four classes or three labels unless these are named."""
    return Question(kind, NAMES.get(kind, ()) if names is None else names)


def objective_of(name: str, width: int, question: Question | None = None, vocabulary=VOCABULARY, **settings):
    """An objective with some of its settings changed; without a question, for the first kind that it learns from."""
    outcomes = registry().get("objective", name).outcomes
    if question is None and outcomes:
        question = question_of(outcomes[0])
    made = from_plain("objective", {"name": name, **settings})
    return build("objective", made, width=width, vocabulary=vocabulary, question=question)
