"""The formulas of the papers, position by position and channel by channel, in float64; slow, and shared with nothing.

`activations` A and `gradients` G (of the class score S with respect to A) are arrays [K, h, w] of one image. Every
function returns the signed map [h, w], before any ReLU.
"""

import numpy as np


def cam(activations, weights):
    """CAM, arXiv:1512.04150, eq. 2: M(i, j) = sum over k of w_k A_k(i, j), w the classifier's weights of the class."""
    channels, height, width = activations.shape
    result = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            for k in range(channels):
                result[i, j] += float(weights[k]) * float(activations[k, i, j])
    return result


def gradcam(activations, gradients):
    """Grad-CAM, arXiv:1610.02391: alpha_k = 1/Z sum over i, j of G_k(i, j) (eq. 1); M = sum of alpha_k A_k (eq. 2)."""
    channels, height, width = activations.shape
    alpha = np.zeros(channels)
    for k in range(channels):
        total = 0.0
        for i in range(height):
            for j in range(width):
                total += float(gradients[k, i, j])
        alpha[k] = total / (height * width)
    return cam(activations, alpha)


def gradcam_plusplus(activations, gradients):
    """Grad-CAM++, arXiv:1710.11063, with Y = exp(S), up to the positive factor exp(S) of the whole map.

    alpha_k(i, j) = G^2 / (2 G^2 + sum over a, b of A_k(a, b) G^3); w_k = sum over i, j of alpha_k(i, j) relu(G(i, j)),
    with dY/dA = exp(S) G; M = sum of w_k A_k. Where the denominator is zero, alpha is.
    """
    channels, height, width = activations.shape
    weights = np.zeros(channels)
    for k in range(channels):
        total = 0.0
        for i in range(height):
            for j in range(width):
                total += float(activations[k, i, j])
        for i in range(height):
            for j in range(width):
                g = float(gradients[k, i, j])
                denominator = 2 * g**2 + total * g**3
                alpha = g**2 / denominator if denominator != 0 else 0.0
                weights[k] += alpha * max(g, 0.0)
    return cam(activations, weights)


def xgradcam(activations, gradients):
    """XGrad-CAM, arXiv:2008.02312: w_k = sum over i, j of A_k(i, j) / (sum over a, b of A_k(a, b)) G_k(i, j).

    A channel whose sum is zero has no weight.
    """
    channels, height, width = activations.shape
    weights = np.zeros(channels)
    for k in range(channels):
        total = 0.0
        for i in range(height):
            for j in range(width):
                total += float(activations[k, i, j])
        for i in range(height):
            for j in range(width):
                if total != 0:
                    weights[k] += float(activations[k, i, j]) / total * float(gradients[k, i, j])
    return cam(activations, weights)


def layercam(activations, gradients):
    """LayerCAM, doi:10.1109/TIP.2021.3089943: M(i, j) = sum over k of relu(G_k(i, j)) A_k(i, j)."""
    channels, height, width = activations.shape
    result = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            for k in range(channels):
                result[i, j] += max(float(gradients[k, i, j]), 0.0) * float(activations[k, i, j])
    return result


def hirescam(activations, gradients):
    """HiResCAM, arXiv:2011.08891: M(i, j) = sum over k of G_k(i, j) A_k(i, j)."""
    channels, height, width = activations.shape
    result = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            for k in range(channels):
                result[i, j] += float(gradients[k, i, j]) * float(activations[k, i, j])
    return result


METHODS = {
    "cam": cam,
    "gradcam": gradcam,
    "gradcam++": gradcam_plusplus,
    "hirescam": hirescam,
    "layercam": layercam,
    "xgradcam": xgradcam,
}
