"""Which weights a network has, in one line of text."""

import hashlib
from collections.abc import Container
from typing import Any

import torch


@torch.no_grad()
def weights_digest(model: Any, without: Container[str] = ()) -> str:
    """sha256 over names, types, shapes and bytes of all tensors of a model but those named."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name not in without:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
