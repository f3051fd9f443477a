"""Spurious features: whether a model predicts a class by the object, or by a mark that goes with it.

Every scene is shown in four versions, with and without the object and with and without the mark, all else being equal:
a factorial design of two factors (Fisher, The Design of Experiments, 1935, chapter VI), in which each scene is compared
with itself.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from camkit.drift import energy_inside
from camkit.errors import CamkitError, CamkitWarning
from camkit.explain import Explainer
from camkit.explanation import Explanation
from camkit.goals import Goal
from camkit.pictures import as_images, as_region
from camkit.precision import single
from camkit.samples import Box, Sample
from camkit.statistics import Interval, bootstrap, words
from camkit.targets import probabilities

VERSIONS = ("both", "object_only", "mark_only", "neither")

# A mark that moves the probability by less than this, in the mean, is not what a model goes by.
NOTICEABLE = 0.1


@dataclass(frozen=True)
class Versions(Sample):
    """A sample in four versions; `picture` shows both the object, at `boxes`, and the mark.

    Attributes:
        mark: where the mark is, (left, top, right, bottom) in pixels, right and bottom exclusive.
        object_only: the same picture without the mark.
        mark_only: without the object.
        neither: without both.
    """

    _: KW_ONLY
    mark: Box
    object_only: Image.Image
    mark_only: Image.Image
    neither: Image.Image

    def version(self, name: str) -> Image.Image:
        """The picture of a version by its name, of `VERSIONS`."""
        found: Image.Image = self.picture if name == "both" else getattr(self, name)
        return found


@dataclass(frozen=True)
class Energy:
    """Where the energy of a method's heatmaps lies when object and mark are there, [n] each; NaN where there is none.

    Attributes:
        object, mark: the shares of the energy that lie in the boxes, which do not overlap.
        object_area, mark_area: the shares of the image that the boxes cover.
    """

    object: NDArray[np.float64]
    mark: NDArray[np.float64]
    object_area: NDArray[np.float64]
    mark_area: NDArray[np.float64]

    @property
    def elsewhere(self) -> NDArray[np.float64]:
        """The share that is in neither box."""
        return 1 - self.object - self.mark

    @property
    def object_density(self) -> NDArray[np.float64]:
        """How many times as strong the heatmap is in the object's box as over the whole image, in the mean."""
        return self.object / self.object_area

    @property
    def mark_density(self) -> NDArray[np.float64]:
        """How many times as strong the heatmap is in the mark's box as over the whole image, in the mean."""
        return self.mark / self.mark_area


@dataclass(frozen=True)
class Findings:
    """What a model said of n scenes.

    Attributes:
        names: the scenes'.
        classes: the class in question, of each scene.
        probability: of that class, [n] for each version.
        predicted: whether it is predicted, bool [n] for each version: as the top class, of a sigmoid model with a
            probability above one half.
        energy: by method.
    """

    names: Sequence[str]
    classes: Sequence[int]
    probability: Mapping[str, NDArray[np.float64]]
    predicted: Mapping[str, NDArray[np.bool_]]
    energy: Mapping[str, Energy]

    @property
    def mark_effect(self) -> Interval:
        """By how much the mark raises the probability: the mean over scenes with and without the object."""
        p = self.probability
        return bootstrap((p["both"] - p["object_only"] + p["mark_only"] - p["neither"]) / 2)

    @property
    def object_effect(self) -> Interval:
        """By how much the object raises the probability: the mean over scenes with and without the mark."""
        p = self.probability
        return bootstrap((p["both"] - p["mark_only"] + p["object_only"] - p["neither"]) / 2)

    @property
    def kept_without_mark(self) -> Interval:
        """Of scenes in which the class is predicted, the share in which it still is when the mark is removed."""
        return self._share("both", True, "object_only")

    @property
    def kept_without_object(self) -> Interval:
        """Of scenes in which the class is predicted, the share in which it still is when the object is removed."""
        return self._share("both", True, "mark_only")

    @property
    def appears_with_mark(self) -> Interval:
        """Of scenes without both in which the class is not predicted, the share in which the mark makes it appear."""
        return self._share("neither", False, "mark_only")

    @property
    def appears_with_object(self) -> Interval:
        """Of scenes without both in which the class is not predicted, the share in which the object makes it appear."""
        return self._share("neither", False, "object_only")

    @property
    def verdict(self) -> str:
        """What the numbers say, in a sentence."""
        mark, object_ = self.mark_effect, self.object_effect
        by_mark, by_object = (words(effect, signed=True) for effect in (mark, object_))
        said = f"the mark raises the class's probability by {by_mark}, the object by {by_object}"
        if mark.low > max(object_.high, NOTICEABLE):
            return f"The model goes by the mark and not by the object: {said}."
        if mark.low > NOTICEABLE:
            return f"The model goes by the mark too: {said}."
        if mark.high < NOTICEABLE and object_.low > NOTICEABLE:
            return f"The model does not go by the mark: {said}."
        if mark.high < NOTICEABLE:
            return f"The model goes neither by the mark nor by the object: {said}."
        return f"These scenes do not settle whether the model goes by the mark: {said}; more scenes are needed."

    def _share(self, given: str, value: bool, then: str) -> Interval:
        chosen = self.predicted[given] == value
        return bootstrap(self.predicted[then][chosen].astype(np.float64))


def examine(
    explainer: Explainer,
    samples: Sequence[Sample],
    methods: Sequence[str] = ("gradcam",),
    *,
    layer: str | None = None,
    options: Mapping[str, object] | None = None,
    batch_size: int = 16,
) -> Findings:
    """Shows a model all four versions of each sample, and looks where the maps of the class are when both are there.

    Args:
        explainer: the model, with its preprocessing.
        samples: of type `Versions`.
        methods: names of methods of kind ``map``.
        layer: as for an Explainer.
        options: the methods' options, as for an Explainer.
        batch_size: samples in one pass.

    Raises:
        CamkitError: there are no samples, they do not come in versions, or something is not known.
    """
    scenes = versions_of(samples)
    chances: dict[str, list[Tensor]] = {name: [] for name in VERSIONS}
    decisions: dict[str, list[Tensor]] = {name: [] for name in VERSIONS}
    energies: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in methods}
    for start in range(0, len(scenes), batch_size):
        batch = scenes[start : start + batch_size]
        classes = torch.tensor([scene.class_index for scene in batch], device=explainer.device)
        for name in VERSIONS:
            chance, decided = answers(explainer, [scene.version(name) for scene in batch], classes)
            chances[name].append(chance)
            decisions[name].append(decided)
        objects, marks = (
            torch.stack([as_region(explainer, scene.picture.size, boxes) for scene, boxes in pairs])
            for pairs in ([(one, one.boxes) for one in batch], [(one, (one.mark,)) for one in batch])
        )
        found = explain(explainer, [scene.picture for scene in batch], classes, methods, layer, options)
        for name, explanation in found.items():
            heatmaps = explanation.heatmaps.cpu()
            shares = (energy_inside(heatmaps, regions) for regions in (objects, marks))
            energies[name].append((*shares, *(regions.float().mean(dim=(1, 2)) for regions in (objects, marks))))
    return Findings(
        [scene.name or f"scene-{place:05}" for place, scene in enumerate(scenes)],
        [scene.class_index for scene in scenes],
        {name: torch.cat(values).double().numpy() for name, values in chances.items()},
        {name: torch.cat(values).numpy() for name, values in decisions.items()},
        {
            name: Energy(*(torch.cat(parts).double().numpy() for parts in zip(*values, strict=True)))
            for name, values in energies.items()
        },
    )


def versions_of(samples: Sequence[Sample]) -> list[Versions]:
    """The samples as what they must be.

    Raises:
        CamkitError: there are none, or one does not come in versions.
    """
    found = [sample for sample in samples if isinstance(sample, Versions)]
    if len(found) < len(samples):
        raise CamkitError(
            "Whether a model goes by a mark can only be asked of scenes in four versions, with and without the mark "
            "and the object; choose a data set whose samples are camkit.spurious.Versions."
        )
    if not found:
        raise CamkitError("The data set has no samples, so there is nothing to ask.")
    return found


def answers(explainer: Explainer, pictures: Sequence[Image.Image], classes: Tensor) -> tuple[Tensor, Tensor]:
    """The probability of each picture's class, float [B], and whether it is predicted, bool [B], on the CPU."""
    with torch.no_grad():
        logits = single(explainer.logits(as_images(explainer, pictures)))
    if int(classes.max()) >= logits.shape[1] or int(classes.min()) < 0:
        raise CamkitError(
            f"The scenes ask for class {int(classes.max())}, but the model has {logits.shape[1]} classes; choose a "
            f"model of these scenes."
        )
    probability = "sigmoid" if logits.shape[1] == 1 else explainer.probability
    chances = probabilities(logits, probability).gather(1, classes[:, None])[:, 0]
    return chances.cpu(), Goal(classes, None, probability).kept(logits).cpu()


def explain(
    explainer: Explainer,
    pictures: Sequence[Image.Image],
    classes: Tensor,
    methods: Sequence[str],
    layer: str | None = None,
    options: Mapping[str, object] | None = None,
) -> dict[str, Explanation]:
    """The explanations of each picture's class by method; blank maps are no reason to warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CamkitWarning)
        images = as_images(explainer, pictures)
        found = explainer(images, list(methods), target=classes, layer=layer, options=options)
    return {explanation.method: explanation for explanation in found}
