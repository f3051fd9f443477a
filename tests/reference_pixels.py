"""Plain references for methods on pixels and Full-Grad, in loops and float64; they share nothing with the package."""

import copy

import numpy as np
import torch
from torch import nn


class Recorded(nn.Module):
    """Keeps the gradient at its module's output, and how often the module ran."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        self.outputs = []

    def forward(self, *args):
        output = self.module(*args)
        output.retain_grad()
        self.outputs.append(output)
        # what comes behind may overwrite its input
        return output.clone()


def bias_of(module):
    """What a module adds to each of its channels; None for one that adds nothing."""
    if isinstance(module, nn.BatchNorm2d):
        scale = module.weight / (module.running_var + module.eps) ** 0.5
        return (module.bias - module.running_mean * scale).detach()
    if isinstance(module, nn.Conv2d | nn.Linear | nn.LayerNorm) and module.bias is not None:
        return module.bias.detach()
    return None


def gradients_at_biases(model, images, classes):
    """(gradient at the images, [(path, bias, gradient at that module's output) for every call]), in float64."""
    twin = copy.deepcopy(model).double()
    found = {}
    for path, module in list(twin.named_modules()):
        bias = bias_of(module)
        if bias is not None:
            parent = twin.get_submodule(path.rpartition(".")[0])
            found[path] = (Recorded(module), bias)
            setattr(parent, path.rpartition(".")[2], found[path][0])
    inputs = images.double().requires_grad_()
    logits = twin(inputs)
    logits.gather(1, torch.as_tensor(classes)[:, None]).sum().backward()
    terms = [(path, bias, out.grad) for path, (record, bias) in found.items() for out in record.outputs]
    return inputs.grad, [(path, bias, gradient) for path, bias, gradient in terms if gradient is not None]


def upsampled(values, height, width):
    """Bilinear interpolation of [h, w] with pixel centres at half integers, pixel by pixel."""
    rows, columns = values.shape
    result = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * rows / height - 0.5, 0), rows - 1)
            x = min(max((j + 0.5) * columns / width - 0.5, 0), columns - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            above = values[top, left] * (1 - x + left) + values[top, right] * (x - left)
            below = values[bottom, left] * (1 - x + left) + values[bottom, right] * (x - left)
            result[i, j] = above * (1 - y + top) + below * (y - top)
    return result


def fullgrad(image, image_gradient, terms, *, jointly=False):
    """Full-Grad of one image [C, H, W], arXiv:1905.00780: psi(gradient * image) + the sum of psi(gradient * bias).

    psi is the magnitude, scaled to [0, 1] and upsampled; `terms` are arrays [K, h, w]. Scaled is each channel, or all
    of a layer `jointly`.
    """
    height, width = image.shape[1:]
    result = np.zeros((height, width))
    for term in (image_gradient * image, *terms):
        magnitudes = np.abs(term)
        for channel in magnitudes:
            lowest, highest = (magnitudes.min(), magnitudes.max()) if jointly else (channel.min(), channel.max())
            if highest > lowest:
                result += upsampled((channel - lowest) / (highest - lowest), height, width)
    return result
