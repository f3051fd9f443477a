"""The methods that perturb activations or images, step by step in float64; slow, and shared with nothing.

`activations` A is an array [K, h, w] of one image, `image` its pixels [C, H, W] as the model takes them. `head` is a
function from activations to the score, `model` one from an image to the score, `derive` one from an image to the pair
(activations, gradients). Every function returns the signed map, before any ReLU that is not inside the method.
"""

import math

import numpy as np


def total(weights, activations):
    """Sum over k of w_k A_k(i, j)."""
    channels, height, width = activations.shape
    result = np.zeros((height, width))
    for k in range(channels):
        for i in range(height):
            for j in range(width):
                result[i, j] += weights[k] * activations[k, i, j]
    return result


def resized(values, height, width):
    """Bilinear: the middle of an output pixel, in input pixels, between the middles of its four neighbours."""
    rows, columns = values.shape

    def neighbours(place, size, wanted):
        middle = max((place + 0.5) * size / wanted - 0.5, 0.0)
        low = min(int(middle), size - 1)
        return low, min(low + 1, size - 1), middle - low

    result = np.zeros((height, width))
    for i in range(height):
        top, bottom, down = neighbours(i, rows, height)
        for j in range(width):
            left, right, across = neighbours(j, columns, width)
            upper = values[top, left] * (1 - across) + values[top, right] * across
            lower = values[bottom, left] * (1 - across) + values[bottom, right] * across
            result[i, j] = upper * (1 - down) + lower * down
    return result


def mask_of(channel, image):
    """The channel resized to the image, then stretched to [0, 1]; None where it is constant."""
    if channel.max() == channel.min():
        return None
    large = resized(channel, *image.shape[1:])
    return (large - large.min()) / (large.max() - large.min())


def softmax(values):
    """exp(v_k) / sum over l of exp(v_l), over the channels that are not None, which weigh nothing."""
    highest = max((value for value in values if value is not None), default=0.0)
    powers = [0.0 if value is None else math.exp(value - highest) for value in values]
    return [power / (sum(powers) or 1.0) for power in powers]


def ablationcam(activations, head, weights="relative"):
    """Ablation-CAM: w_k = (y - y_k) / |y|, or (y - y_k) / ||A_k||, with y_k the score without channel k."""
    score = head(activations)
    found = []
    for k in range(len(activations)):
        ablated = activations.copy()
        ablated[k] = 0
        drop = score - head(ablated)
        length = math.sqrt(sum(value**2 for value in activations[k].flatten()))
        if weights == "relative":
            found.append(drop / abs(score) if score != 0 else drop)
        else:
            found.append(drop / length if length > 0 else 0.0)
    return total(found, activations)


def confidence_cam(activations, image, model, versions, weights="softmax"):
    """Score-CAM and its kin: versions(mask, k) are the masked images whose increase of confidence is averaged."""
    black = model(np.zeros_like(image))
    increases = []
    for k in range(len(activations)):
        mask = mask_of(activations[k], image)
        if mask is None:
            increases.append(None)
            continue
        scores = [model(masked) - black for masked in versions(mask, k)]
        increases.append(sum(scores) / len(scores))
    found = softmax(increases) if weights == "softmax" else [value or 0.0 for value in increases]
    return total(found, activations)


def scorecam(activations, image, model, weights="softmax"):
    """Score-CAM, arXiv:1910.01279."""
    return confidence_cam(activations, image, model, lambda mask, k: [image * mask], weights)


def sscam(activations, image, model, noise="mask", std=2.0, samples=35, seed=0, weights="softmax"):
    """SS-CAM, arXiv:2006.14255; version n of channel k draws from a generator of its own, seeded (seed, k, n)."""

    def versions(mask, k):
        for n in range(samples):
            generator = np.random.default_rng((seed, k, n))
            if noise == "mask":
                yield image * (mask + std * generator.standard_normal(mask.shape))
            else:
                yield image * mask + std * generator.standard_normal(image.shape)

    return confidence_cam(activations, image, model, lambda mask, k: list(versions(mask, k)), weights)


def iscam(activations, image, model, path="sum", steps=10, weights="softmax"):
    """IS-CAM, arXiv:2010.03023: M = 0, for i = 0 .. N - 1: M = M + i / N masked image; or the line i / N for 1 .. N."""

    def versions(mask, k):
        so_far = np.zeros_like(image)
        for i in range(steps):
            so_far = so_far + image * mask * i / steps
            yield so_far if path == "sum" else image * mask * (i + 1) / steps

    return confidence_cam(activations, image, model, lambda mask, k: list(versions(mask, k)), weights)


def blurred(image, radius=25, sigma=50.0):
    """Gaussian blur of 51 x 51, the border mirrored without repeating the outermost pixels."""
    result = image
    for axis in (1, 2):
        reach = min(radius, image.shape[axis] - 1)
        kernel = np.array([math.exp(-(offset**2) / (2 * sigma**2)) for offset in range(-reach, reach + 1)])
        padding = [(reach, reach) if place == axis else (0, 0) for place in range(3)]
        padded = np.pad(result, padding, mode="reflect")
        result = np.apply_along_axis(np.convolve, axis, padded, kernel / kernel.sum(), mode="valid")
    return result


def groupcam(activations, gradients, image, model, groups=32, percentile=70.0):
    """Group-CAM, arXiv:2103.13859."""
    size = math.ceil(len(activations) / groups)
    soft = blurred(image)
    result = np.zeros(image.shape[1:])
    for start in range(0, len(activations), size):
        members = range(start, min(start + size, len(activations)))
        group = sum(gradients[k].mean() * activations[k] for k in members)
        group = np.maximum(group, 0)
        group = np.where(group > np.percentile(group, percentile), group, 0)
        mask = mask_of(group, image)
        if mask is not None:
            result += (model(mask * image + (1 - mask) * soft) - model(soft)) * mask
    return result


def rise(image, model, masks=4000, grid=7, keep=0.5, seed=0):
    """RISE, arXiv:1806.07421; mask i draws from a generator of its own, seeded (seed, i): cells, then the shift."""
    height, width = image.shape[1:]
    down, across = math.ceil(height / grid), math.ceil(width / grid)
    result = np.zeros((height, width))
    for i in range(masks):
        generator = np.random.default_rng((seed, i))
        cells = (generator.random((grid, grid)) < keep).astype(float)
        top, left = int(generator.integers(down)), int(generator.integers(across))
        large = resized(cells, (grid + 1) * down, (grid + 1) * across)
        mask = large[top : top + height, left : left + width]
        result += model(image * mask) * mask
    return result / (masks * keep)


def reciprocam(activations, head, gaussian=False):
    """Recipro-CAM, arXiv:2209.14074: M(i, j) = the score of the activations around (i, j) alone."""
    height, width = activations.shape[1:]
    share = {0: 1 / 2, 1: 1 / 4} if gaussian else {0: 1.0, 1: 0.0}
    result = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            alone = np.zeros_like(activations)
            for p in range(height):
                for q in range(width):
                    alone[:, p, q] = activations[:, p, q] * share.get(abs(p - i), 0.0) * share.get(abs(q - j), 0.0)
            result[i, j] = head(alone)
    return result


def shapleycam(activations, gradients, hessian):
    """Shapley-CAM, arXiv:2501.06261: w_k = mean over i, j of G - H A / 2; `hessian` is H [K h w, K h w]."""
    flat = activations.flatten()
    along = np.array([sum(row * flat) for row in hessian]).reshape(activations.shape)
    return total([(gradients[k] - along[k] / 2).mean() for k in range(len(activations))], activations)


def integrated_gradcam(image, derive, steps=50, baseline=0.0):
    """Integrated Grad-CAM, arXiv:2102.07805: 1/m sum over t = 1 .. m of relu(sum of mean(G_k) (A_k - A_k(0)))."""
    start = np.full_like(image, baseline)
    origin = derive(start)[0]
    result = 0.0
    for t in range(1, steps + 1):
        activations, gradients = derive(start + (image - start) * t / steps)
        weights = [gradient.mean() for gradient in gradients]
        result = result + np.maximum(total(weights, activations - origin), 0) / steps
    return result


def smooth_gradcam_plusplus(image, derive, count=4, std=0.15, seed=0):
    """Smooth Grad-CAM++, arXiv:1908.01224; version i draws from a generator of its own, seeded (seed, i)."""
    spread = std * (image.max() - image.min())
    pairs = [
        derive(image + spread * np.random.default_rng((seed, i)).standard_normal(image.shape)) for i in range(count)
    ]
    activations = sum(a for a, _ in pairs) / count
    first, second, third = (sum(g**power for _, g in pairs) / count for power in (1, 2, 3))
    weights = []
    for k in range(len(activations)):
        weight = 0.0
        for i in range(activations.shape[1]):
            for j in range(activations.shape[2]):
                denominator = 2 * second[k, i, j] + activations[k].sum() * third[k, i, j]
                alpha = second[k, i, j] / denominator if denominator != 0 else 0.0
                weight += alpha * max(first[k, i, j], 0.0)
        weights.append(weight)
    return total(weights, activations)
