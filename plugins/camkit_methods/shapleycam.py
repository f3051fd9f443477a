"""Shapley-CAM (Cai, 2025, arXiv:2501.06261)."""

import torch
from torch import Tensor

from camkit import plugin
from camkit.channels import weighted
from camkit.contracts import Head


@plugin.method("shapleycam", paper="arXiv:2501.06261")
def shapleycam(activations: Tensor, head: Head) -> Tensor:
    """Shapley-CAM: Grad-CAM with half the curvature along the activations taken off the gradient.

    The weight of a channel is the mean over its positions of g - H A / 2, with the gradient g and the Hessian H of the
    score: the Shapley value of the channels, by a Taylor expansion of second order. Where the head is piecewise linear,
    H is zero and the map is Grad-CAM's. The paper scores with a utility of its own (ReST); here that is the target.
    """
    with torch.enable_grad():
        leaf = activations.detach().requires_grad_()
        (gradients,) = torch.autograd.grad(head(leaf).sum(), leaf, create_graph=True)
        curvature = None
        # a linear head's gradient is a constant, which has no graph
        if gradients.requires_grad:
            (curvature,) = torch.autograd.grad(gradients, leaf, grad_outputs=activations.detach(), allow_unused=True)
    along = torch.zeros_like(activations) if curvature is None else curvature
    return weighted(activations, (gradients.detach() - along / 2).mean(dim=(2, 3)))
