"""Positions as rotations and as sines (Su et al. 2021, "RoFormer"; Vaswani et al. 2017). No parameters, no tables.

Shapes: B rows, T positions, H heads, C width of a head, D width.
"""

import torch
from torch import Tensor


def angles(position_BT: Tensor, width: int, base: float = 10000.0) -> Tensor:
    """(B, T, width / 2) float32: position times base to the power of -2i / width."""
    half = torch.arange(0, width, 2, device=position_BT.device, dtype=torch.float32)
    return position_BT.float()[..., None] * base ** (-half / width)


def sinusoid(position_BT: Tensor, width: int) -> Tensor:
    """(B, T, D) float32: sine at even and cosine at odd places of the same angle; position 0 is 0, 1, 0, 1, ..."""
    angle = angles(position_BT, width + width % 2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)[..., :width]


def rotation_of(position_BT: Tensor, head_width: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine (B, T, 1, C / 2) that rotate a head's query and key at each position."""
    angle = angles(position_BT, head_width, base)[:, :, None]
    return angle.cos(), angle.sin()


def rotate(x_BTHC: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """The halves of a head's width are rotated against each other; scores then depend on differences of positions."""
    cosine, sine = (part.to(x_BTHC.dtype) for part in rotation)
    one, two = x_BTHC.chunk(2, dim=-1)
    return torch.cat([one * cosine - two * sine, two * cosine + one * sine], dim=-1)
