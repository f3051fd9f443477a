"""What ONNX lacks of what this distribution uses: without the rule here ``median-gradcam`` cannot be exported."""

import torch
from torch import Tensor

from camkit import plugin


@plugin.decomposition(torch.ops.aten.median.dim)
def median_dim(self: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The median is the element in the middle of the sorted ones. The arguments are the operator's own."""
    values, indices = self.sort(dim=dim)
    middle = (self.shape[dim] - 1) // 2
    values, indices = values.narrow(dim, middle, 1), indices.narrow(dim, middle, 1)
    return (values, indices) if keepdim else (values.squeeze(dim), indices.squeeze(dim))
