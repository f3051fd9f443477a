"""The precision in which maps are computed."""

import torch
from torch import Tensor


def single(tensor: Tensor) -> Tensor:
    """Half-precision tensors in float32, in which maps are computed; others as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
