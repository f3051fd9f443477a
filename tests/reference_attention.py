"""The formulas of the attention methods, plainly, in float64; and the attention they start from. Shared with nothing.

`attention` A and `gradients` G are arrays [L, heads, N, N] of one image, the first layer first. Every function of them
returns a vector [N] over tokens: what the token that the classifier reads, or the mean of those tokens, relies on.
"""

import copy

import numpy as np
import torch
from torch import nn


def rows(matrix, reads):
    """The mean over the rows of the tokens that the classifier reads."""
    return sum(matrix[token] for token in reads) / len(reads)


def rollout(attention, reads, heads="mean", discard_ratio=0.0):
    """Abnar and Zuidema: the product of 0.5 A + 0.5 I; head fusion and discarding as in vit-explain."""
    count = attention.shape[-1]
    result = np.eye(count)
    for layer in attention:
        fused = np.zeros((count, count))
        for i in range(count):
            for j in range(count):
                values = [head[i, j] for head in layer]
                fused[i, j] = {"mean": sum(values) / len(values), "max": max(values), "min": min(values)}[heads]
        result = _mixed(_discarded(fused, discard_ratio, spared=(0, 0))) @ result
    return rows(result, reads)


def gradient_rollout(attention, gradients, reads, discard_ratio=0.0):
    """vit-explain: rollout of what is positive in the mean over heads of G A."""
    result = np.eye(attention.shape[-1])
    for layer, gradient in zip(attention, gradients, strict=True):
        fused = np.maximum(sum(a * g for a, g in zip(layer, gradient, strict=True)) / len(layer), 0)
        result = _mixed(_discarded(fused, discard_ratio)) @ result
    return rows(result, reads)


def chefer(attention, gradients, reads):
    """Chefer et al.: R = R + mean over heads of relu(G A) R; read without the I that it starts from."""
    result = np.eye(attention.shape[-1])
    for layer, gradient in zip(attention, gradients, strict=True):
        update = sum(np.maximum(a * g, 0) for a, g in zip(layer, gradient, strict=True)) / len(layer)
        result = result + update @ result
    return rows(result - np.eye(len(result)), reads)


def legrad(gradients):
    """LeGrad: the mean over layers, heads and attending tokens of relu(G), G of each layer's own score."""
    layers, heads, count, _ = gradients.shape
    total = np.zeros(count)
    for layer in gradients:
        for head in layer:
            for attending in head:
                total += np.maximum(attending, 0)
    return total / (layers * heads * count)


def _discarded(matrix, ratio, spared=None):
    flat = sorted(np.ndindex(matrix.shape), key=lambda place: matrix[place])
    result = matrix.copy()
    for place in flat[: int(matrix.size * ratio)]:
        if place != spared:
            result[place] = 0
    return result


def _mixed(matrix):
    mixed = 0.5 * matrix + 0.5 * np.eye(len(matrix))
    for i in range(len(mixed)):
        mixed[i] = mixed[i] / mixed[i].sum()
    return mixed


class PlainViT:
    """A timm or torchvision ViT walked through by hand in float64, with attention written out and full autograd."""

    def __init__(self, model, tail):
        self.model = copy.deepcopy(model).double()
        self.tail = tail
        timm = hasattr(model, "blocks")
        self.blocks = self.model.blocks if timm else self.model.encoder.layers
        self.block = self._timm_block if timm else self._torchvision_block

    def __call__(self, images, classes):
        """Attention, total gradients and own gradients of each image, each [B, L, heads, N, N], and the logits."""
        starts = []
        handle = self.blocks[0].register_forward_pre_hook(lambda module, inputs: starts.append(inputs[0].detach()))
        with torch.no_grad():
            self.model(images.double())
        handle.remove()
        tokens, attention, states = starts[0].requires_grad_(), [], []
        for block in self.blocks:
            tokens, weights = self.block(block, tokens)
            attention.append(weights)
            states.append(tokens)
        chosen = torch.arange(len(images)), torch.tensor(classes)
        logits = self.tail(self.model, tokens)
        total = torch.autograd.grad(logits[chosen].sum(), attention, retain_graph=True)
        own = []
        for state, weights in zip(states, attention, strict=True):
            means = state.mean(dim=1, keepdim=True).repeat(1, state.shape[1], 1)
            score = self.tail(self.model, means)[chosen].sum()
            own.append(torch.autograd.grad(score, weights, retain_graph=True)[0])
        stacked = [torch.stack(list(layers), dim=1).detach().numpy() for layers in (attention, total, own)]
        return (*stacked, logits.detach())

    def _timm_block(self, block, tokens):
        attended, weights = self._attend(block.norm1(tokens), block.attn.qkv, block.attn.proj, block.attn.num_heads)
        tokens = tokens + attended
        return tokens + block.mlp(block.norm2(tokens)), weights

    def _torchvision_block(self, block, tokens):
        own = block.self_attention
        project = nn.Linear(own.embed_dim, 3 * own.embed_dim, dtype=torch.float64)
        project.weight, project.bias = own.in_proj_weight, own.in_proj_bias
        attended, weights = self._attend(block.ln_1(tokens), project, own.out_proj, own.num_heads)
        tokens = tokens + attended
        return tokens + block.mlp(block.ln_2(tokens)), weights

    def _attend(self, tokens, project, join, heads):
        batch, count, width = tokens.shape
        query, key, value = project(tokens).reshape(batch, count, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        products = torch.einsum("bhid,bhjd->bhij", query, key) / (width // heads) ** 0.5
        exponents = (products - products.amax(dim=3, keepdim=True)).exp()
        weights = exponents / exponents.sum(dim=3, keepdim=True)
        return join(torch.einsum("bhij,bhjd->bihd", weights, value).reshape(batch, count, width)), weights
