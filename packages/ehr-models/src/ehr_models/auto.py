"""All networks of this package, so that transformers' ``AutoModel`` knows them once this is imported."""

from pathlib import Path

from ehr_core.errors import FormatError
from ehr_core.formats.folder import read_json
from transformers import AutoModel

from ehr_models.base import EhrModel
from ehr_models.bert import EhrBertConfig
from ehr_models.gpt import EhrGPTConfig
from ehr_models.hf import EhrHFConfig

TYPES = {config.model_type: config for config in (EhrGPTConfig, EhrBertConfig, EhrHFConfig)}


def load(folder: Path) -> EhrModel:
    """See `ehr_models.load_model`."""
    config = read_json(folder / "config.json")
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in TYPES:
        raise FormatError(
            f"{folder} is a model of type {kind!r}, and ehr-models has {', '.join(TYPES)}; load it with what made it"
        )
    model: EhrModel = AutoModel.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return model.eval()
