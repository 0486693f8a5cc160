"""Errors for users: one line that says what is wrong, where, what is allowed and what to do.

Commands print an EhrError without a traceback and exit with status 1. Anything else is a defect of ours.
Messages name files, rows, columns and settings; they never carry values that belong to a patient.
"""


class EhrError(Exception):
    """Bad input or settings; the message is for the person at the terminal."""


class ConfigError(EhrError):
    """A setting that does not exist, has the wrong type, or contradicts another."""


class PluginError(EhrError):
    """A plugin that is missing, broken or in conflict with another."""


class FormatError(EhrError):
    """A folder or file that is not what it should be: damaged, foreign, or of another version."""


class DataError(EhrError):
    """Events or labels that break the rules of their format."""


class NotApplicable(EhrError):
    """A component cannot answer this question on this data; a report records the reason and goes on."""
