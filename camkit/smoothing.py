"""Augmentation smoothing: the mean map of slightly changed versions of each image."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from camkit.errors import CamkitError
from camkit.explanation import Explanation
from camkit.targets import Target

FACTORS = (0.9, 1.0, 1.1)


def augmented(
    explain: Callable[..., list[Explanation]], images: Tensor, targets: Sequence[Target]
) -> list[Explanation]:
    """What `explain(images, targets=...)` gives, with each map the mean over mirrored and scaled versions.

    The class that each image is explained for is that of the image as it is.

    Raises:
        CamkitError: a target has inputs of its own, or a method gives concepts; neither can be mirrored or averaged.
    """
    if any(target.inputs for target in targets):
        raise CamkitError("Augmentation smoothing mirrors images but not a target's own inputs; leave one of them out.")
    plain = explain(images, targets=targets)
    if any(one.kind == "concepts" for one in plain):
        raise CamkitError("Augmentation smoothing averages maps; the concepts of two images are not the same ones.")
    explained = {id(one.target): one.targets for one in plain}
    fixed = [replace(target, class_index=explained[id(target)]) for target in targets]
    sums = [one.maps.clone() for one in plain]
    for mirrored in (False, True):
        for factor in FACTORS:
            if not mirrored and factor == 1:
                continue
            version = (images.flip(-1) if mirrored else images) * factor
            for total, one in zip(sums, explain(version, targets=fixed), strict=True):
                total += one.maps.flip(-1) if mirrored else one.maps
    count = 2 * len(FACTORS)
    return [
        replace(one, maps=total / count, smoothing=(*one.smoothing, "augmentation"))
        for one, total in zip(plain, sums, strict=True)
    ]
