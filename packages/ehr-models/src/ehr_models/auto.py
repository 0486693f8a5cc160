"""All networks of this package, so that transformers' ``AutoModel`` knows them once this is imported."""

from pathlib import Path
from typing import Any

from ehr_core.errors import FormatError
from ehr_core.formats.folder import read_json, verify_below
from transformers import AutoModel

from ehr_models.base import EhrModel
from ehr_models.bert import EhrBertConfig
from ehr_models.gpt import EhrGPTConfig
from ehr_models.hf import EhrHFConfig

TYPES = {config.model_type: config for config in (EhrGPTConfig, EhrBertConfig, EhrHFConfig)}


def load(folder: Path) -> EhrModel:
    """See `ehr_models.load_model`."""
    verify_below(folder)
    kind = read_json(folder / "config.json", dict[str, Any]).get("model_type")
    if kind not in TYPES:
        raise FormatError(
            f"{folder} is a model of type {kind!r}, and ehr-models has {', '.join(TYPES)}; load it with what made it"
        )
    try:
        model, found = AutoModel.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # of many kinds, for a damaged file or a shape that cannot be
        raise FormatError(
            f"{folder} holds no model that can be read: {(str(error).splitlines() or [''])[0]}"
        ) from error
    odd = sorted(map(str, {*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]}))
    if odd:  # transformers would go on with random numbers in their place
        raise FormatError(
            f"{folder / 'model.safetensors'} and config.json differ in {len(odd)} tensors, first {odd[0]}"
        )
    return model.eval()  # type: ignore[no-any-return]
