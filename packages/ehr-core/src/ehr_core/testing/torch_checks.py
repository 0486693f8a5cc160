"""Checks of the kinds that need torch; imported only when a package with such a component is tested."""

from ehr_core.testing.adapter_checks import ADAPTER_CHECKS
from ehr_core.testing.base import Check
from ehr_core.testing.model_checks import MODEL_CHECKS
from ehr_core.testing.objective_checks import OBJECTIVE_CHECKS

CHECKS: dict[str, list[Check]] = {"model": MODEL_CHECKS, "objective": OBJECTIVE_CHECKS, "adapter": ADAPTER_CHECKS}
