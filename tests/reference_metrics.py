"""The metrics, formula by formula in float64; slow, and shared with nothing.

Of one sample: `heat` is its heatmap [H, W] in [0, 1], `image` [C, H, W] as the model takes it, `inside` the boxes' area
[H, W] of True and False, `boxes` a list of (left, top, right, bottom), right and bottom exclusive. `ask` is a function
from an image to the answer about the explained class, `explain` one from an image to its heatmap (or its signed map).
"""

import math

import numpy as np


def pixels_in_order(heat):
    """(row, column) from the highest value to the lowest, equal ones row by row."""
    height, width = heat.shape
    places = [(i, j) for i in range(height) for j in range(width)]
    return sorted(places, key=lambda place: -heat[place])


def components(shown):
    """The sets of pixels that hang together, also at corners, in the order of their first pixel."""
    left = {(i, j) for i, j in zip(*np.nonzero(shown), strict=True)}
    found = []
    for start in sorted(left):
        if start not in left:
            continue
        group, edge = {start}, [start]
        left.discard(start)
        while edge:
            i, j = edge.pop()
            for neighbour in [(i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]:
                if neighbour in left:
                    left.discard(neighbour)
                    group.add(neighbour)
                    edge.append(neighbour)
        found.append(group)
    return found


def box_around(group):
    rows, columns = [i for i, _ in group], [j for _, j in group]
    return min(columns), min(rows), max(columns) + 1, max(rows) + 1


def iou(one, other):
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0, wide) * max(0, high)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (areas[0] + areas[1] - shared)


def box_iou(heat, boxes, threshold, around):
    if heat.max() == heat.min() or not boxes:
        return math.nan
    groups = components(heat > threshold)
    if around == "largest":
        groups = [max(groups, key=len)] if groups else []
    if around == "all":
        groups = [set().union(*groups)] if groups else []
    return max((iou(box_around(group), box) for group in groups for box in boxes), default=0.0)


def iou_curve(heat, boxes, count, around):
    return [box_iou(heat, boxes, step / count, around) for step in range(count)]


def best_iou(curves):
    """max over thresholds of the mean over samples; `curves` [n][thresholds]."""
    return max(sum(curve[t] for curve in curves) / len(curves) for t in range(len(curves[0])))


def max_box_acc(curves, enough):
    return best_iou([[float(value >= enough) for value in curve] for curve in curves])


def max_box_acc_v2(curves):
    return sum(max_box_acc(curves, enough) for enough in (0.3, 0.5, 0.7)) / 3


def energy(heat, inside):
    return heat[inside].sum() / (heat[inside].sum() + heat[~inside].sum())


def discrimination(heat, asked, other):
    first, second = heat[asked & ~other].max(), heat[other & ~asked].max()
    return 1.0 if first > second else 0.0 if first < second else 0.5


def average_drop(heat, image, ask):
    y, o = ask(image), ask(image * heat)
    return max(0.0, y - o) / y


def increase(heat, image, ask):
    return float(ask(image) < ask(image * heat))


def average_gain(heat, image, ask):
    y, o = ask(image), ask(image * heat)
    return max(0.0, o - y) / (1 - y)


def win_rates(drops):
    """`drops` [methods][n]; who ties shares."""
    rates = [0.0] * len(drops)
    for sample in zip(*drops, strict=True):
        winners = [place for place, drop in enumerate(sample) if drop == min(sample)]
        for place in winners:
            rates[place] += 1 / len(winners) / len(drops[0])
    return rates


def trapezoids(values, places):
    return sum((values[k] + values[k + 1]) / 2 * (places[k + 1] - places[k]) for k in range(len(values) - 1))


def deletion(heat, image, ask, steps, ground):
    order = pixels_in_order(heat)
    counts = [math.ceil(len(order) * step / steps) for step in range(steps + 1)]
    answers = []
    for count in counts:
        changed = image.copy()
        for i, j in order[:count]:
            changed[:, i, j] = ground[:, i, j]
        answers.append(ask(changed))
    return trapezoids(answers, [count / len(order) for count in counts])


def insertion(heat, image, ask, steps, ground):
    # what has come in from one picture has gone from the other
    return deletion(heat, ground, ask, steps, image)


def blurred(image, side=11, sigma=5.0):
    """Every value the mean of its surroundings, weighted by a bell; the image is mirrored at its edges."""
    half = side // 2
    bell = [math.exp(-((k - half) ** 2) / (2 * sigma**2)) for k in range(side)]
    _, height, width = image.shape

    def mirrored(place, size):
        place = abs(place)
        return 2 * (size - 1) - place if place >= size else place

    result = np.zeros_like(image)
    for i in range(height):
        for j in range(width):
            for a in range(side):
                for b in range(side):
                    near = image[:, mirrored(i + a - half, height), mirrored(j + b - half, width)]
                    result[:, i, j] += near * bell[a] * bell[b] / sum(bell) ** 2
    return result


def imputed(image, gone):
    """Each missing pixel the weighted mean of its neighbours (1/6 beside, 1/12 across), all at once, by elimination."""
    channels, height, width = image.shape
    missing = [(i, j) for i in range(height) for j in range(width) if gone[i, j]]
    matrix, known = np.zeros((len(missing), len(missing))), np.zeros((len(missing), channels))
    for row, (i, j) in enumerate(missing):
        for a in (-1, 0, 1):
            for b in (-1, 0, 1):
                y, x = i + a, j + b
                if (a, b) == (0, 0) or not (0 <= y < height and 0 <= x < width):
                    continue
                weight = 1 / 6 if a * b == 0 else 1 / 12
                matrix[row, row] += weight
                if gone[y, x]:
                    matrix[row, missing.index((y, x))] -= weight
                else:
                    known[row] += weight * image[:, y, x]
    result = image.copy()
    for place, values in zip(missing, np.linalg.solve(matrix, known), strict=True):
        result[:, place[0], place[1]] = values
    return result


def after_removal(order, image, ask, shares):
    answers = []
    for share in shares:
        gone = np.zeros(image.shape[1:], dtype=bool)
        for place in order[: round(share * len(order))]:
            gone[place] = True
        answers.append(ask(imputed(image, gone)))
    return sum(answers) / len(answers)


def road(heat, image, ask, shares):
    """(most relevant first, least relevant first, combined), without noise."""
    most, least = (after_removal(pixels_in_order(values), image, ask, shares) for values in (heat, -heat))
    return most, least, (least - most) / 2


def pearson(one, other):
    a, b = one.ravel() - one.mean(), other.ravel() - other.mean()
    return (a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum())


def ranks(values):
    flat = values.ravel()
    return np.array([(flat < value).sum() + ((flat == value).sum() + 1) / 2 for value in flat])


def spearman(one, other):
    return pearson(ranks(one), ranks(other))


def complexity(heat):
    return abs(heat).sum() / heat.size


def coherency(heat, image, explain):
    return (pearson(heat, explain(image * heat)) + 1) / 2


def adcc(heat, image, ask, explain):
    kept = 1 - average_drop(heat, image, ask)
    return 3 / (1 / coherency(heat, image, explain) + 1 / (1 - complexity(heat)) + 1 / kept)


def max_sensitivity(before, image, explain, changes):
    return max(np.linalg.norm(explain(image + change) - before) for change in changes) / np.linalg.norm(before)


def infidelity(heat, image, ask, changes):
    """Each change is what is taken off the image; the map is scaled by the factor that suits it best."""
    predicted = np.array([(change * heat).sum() for change in changes])
    answer = np.array([ask(image) - ask(image - change) for change in changes])
    factor = (predicted * answer).sum() / (predicted * predicted).sum()
    return ((factor * predicted - answer) ** 2).mean()
