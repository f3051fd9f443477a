"""The formulas of the papers, position by position and channel by channel, in float64; slow, and shared with nothing.

`activations` A and `gradients` G (of the class score S with respect to A) are arrays [K, h, w] of one image. Every
function returns the signed map [h, w], before any ReLU, or concepts [k, h, w]. Those that take no gradients call the
second argument `_`.
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


def gradcam_elementwise(activations, gradients):
    """Grad-CAM element-wise: M(i, j) = sum over k of relu(G_k(i, j) A_k(i, j))."""
    channels, height, width = activations.shape
    result = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            for k in range(channels):
                result[i, j] += max(float(gradients[k, i, j]) * float(activations[k, i, j]), 0.0)
    return result


def principal_component(maps, *, centred):
    """X v_1, the channel vectors (rows of X) of all positions projected on X's first right singular vector.

    With `centred`, each channel's mean is subtracted from X. The sign makes the value of largest magnitude positive.
    """
    channels, height, width = maps.shape
    rows = np.zeros((height * width, channels))
    for i in range(height):
        for j in range(width):
            for k in range(channels):
                rows[i * width + j, k] = float(maps[k, i, j])
    if centred:
        rows = rows - rows.mean(axis=0)
    values = rows @ np.linalg.svd(rows, full_matrices=False)[2][0]
    return positive_peak(values).reshape(height, width)


def positive_peak(values):
    """The sign that makes the value of largest magnitude positive; there must be one that clearly is."""
    largest, smallest = max(values), min(values)
    assert abs(largest + smallest) > 2e-3 * max(largest, -smallest), "the sign is not determined"
    return values if largest > -smallest else -values


def eigencam(activations, _):
    """Eigen-CAM, arXiv:2008.00299: A = U S V^T, M = A V_1."""
    return principal_component(activations, centred=False)


def eigengradcam(activations, gradients):
    """Eigen-Grad-CAM of the grad-cam package: the principal component of G A, centred."""
    return principal_component(gradients.astype(np.float64) * activations.astype(np.float64), centred=True)


def segeigencam(activations, gradients):
    """Seg-Eigen-CAM, doi:10.3390/app15137562: the principal component of |G| A, centred, with the sign of its peak."""
    return principal_component(abs(gradients.astype(np.float64)) * activations.astype(np.float64), centred=True)


def kpcacam(activations, _, kernel="sigmoid", gamma=None):
    """KPCA-CAM, arXiv:2410.00267: M = sqrt(lambda_1) v_1 of the centred kernel matrix of the centred positions."""
    channels, height, width = activations.shape
    rows = activations.astype(np.float64).reshape(channels, -1).T
    rows = rows - rows.mean(axis=0)
    count, gamma = len(rows), 1 / channels if gamma is None else gamma
    matrix = np.zeros((count, count))
    for m in range(count):
        for n in range(count):
            product = float(rows[m] @ rows[n])
            distance = float(((rows[m] - rows[n]) ** 2).sum())
            matrix[m, n] = {
                "sigmoid": np.tanh(gamma * product + 1),
                "rbf": np.exp(-gamma * distance),
                "poly": (gamma * product + 1) ** 3,
                "linear": product,
            }[kernel]
    centring = np.eye(count) - 1 / count
    values, vectors = np.linalg.eigh(centring @ matrix @ centring)
    return positive_peak(np.sqrt(values[-1]) * vectors[:, -1]).reshape(height, width)


def fem(activations, _, k=2.0):
    """FEM, doi:10.1109/IPTA50016.2020.9286629: M = sum of mean_k B_k, B_k = 1 where A_k > mean_k + k deviation_k."""
    channels, height, width = activations.shape
    result = np.zeros((height, width))
    for channel in range(channels):
        values = [float(activations[channel, i, j]) for i in range(height) for j in range(width)]
        mean = sum(values) / len(values)
        deviation = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
        for i in range(height):
            for j in range(width):
                if activations[channel, i, j] > mean + k * deviation:
                    result[i, j] += mean
    return result


def random(activations, _):
    """Uniform draws, one for each position, of NumPy's default generator with seed 0."""
    return np.random.default_rng(0).random(activations.shape[1:])


def sobel(images, _):
    """The length of the gradient of the mean over channels by Sobel's kernels, the border repeated outwards."""
    channels, height, width = images.shape
    grey = [
        [sum(float(images[k, i, j]) for k in range(channels)) / channels for j in range(width)] for i in range(height)
    ]

    def at(i, j):
        return grey[min(max(i, 0), height - 1)][min(max(j, 0), width - 1)]

    result = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            across = sum(w * (at(i + n, j + 1) - at(i + n, j - 1)) for n, w in ((-1, 1), (0, 2), (1, 1)))
            down = sum(w * (at(i + 1, j + n) - at(i - 1, j + n)) for n, w in ((-1, 1), (0, 2), (1, 1)))
            result[i, j] = (across**2 + down**2) ** 0.5
    return result


def dff(activations, _, concepts=4, iterations=400):
    """DFF, arXiv:1806.10206: X = W H by Lee and Seung's updates, from NumPy's draws within [0.1, 1) with seed 0.

    X is divided by its mean before, and each row of H made to have length 1 behind; W by descending energy, [k, h, w].
    """
    channels, height, width = activations.shape
    rows = np.maximum(activations.astype(np.float64).reshape(channels, -1).T, 0)
    mean = rows.mean()
    rows = rows / mean
    draws = np.random.default_rng(0).uniform(0.1, 1, (len(rows) + channels, concepts))
    w, h = draws[: len(rows)], draws[len(rows) :].T
    for _ in range(iterations):
        numerator, denominator = rows @ h.T, w @ h @ h.T
        w = w * np.divide(numerator, denominator, out=np.zeros_like(w), where=denominator != 0)
        numerator, denominator = w.T @ rows, w.T @ w @ h
        h = h * np.divide(numerator, denominator, out=np.zeros_like(h), where=denominator != 0)
    maps = [mean * np.linalg.norm(h[c]) * w[:, c] for c in range(concepts)]
    return np.stack(sorted(maps, key=np.linalg.norm, reverse=True)).reshape(concepts, height, width)


METHODS = {
    "cam": cam,
    "dff": dff,
    "eigencam": eigencam,
    "eigengradcam": eigengradcam,
    "fem": fem,
    "gradcam": gradcam,
    "gradcam++": gradcam_plusplus,
    "gradcam-elementwise": gradcam_elementwise,
    "hirescam": hirescam,
    "kpcacam": kpcacam,
    "layercam": layercam,
    "random": random,
    "segeigencam": segeigencam,
    "sobel": sobel,
    "xgradcam": xgradcam,
}
