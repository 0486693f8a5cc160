"""The contracts that every ehr package and plugin shares. Importing this imports no torch, polars or scikit-learn."""

from ehr_core.component import MISSING, Component
from ehr_core.errors import EhrError, NotApplicable
from ehr_core.hookspecs import hookimpl, hookspec

__all__ = ["MISSING", "Component", "EhrError", "NotApplicable", "hookimpl", "hookspec"]
