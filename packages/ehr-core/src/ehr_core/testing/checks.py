"""Names of before, until everyone in the tree has moved to `base` and `kit`."""

from ehr_core.testing.base import Check as Check
from ehr_core.testing.base import small_settings as small_settings
from ehr_core.testing.kit import HEAVY as HEAVY
from ehr_core.testing.kit import check_import_is_light as check_import_is_light
from ehr_core.testing.kit import checks_of as checks_of
