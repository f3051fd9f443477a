"""Robustness: what attacks of growing budgets do to predictions and to the maps of several methods, image by image.

Each image is attacked once for each attack and budget; all methods explain the same attacked image, of the class that
was attacked. So methods, attacks and budgets can be compared in pairs.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camkit import drift
from camkit.attacks import AttackResult, as_attack, attack, norm_of, to_pixels
from camkit.errors import CamkitError, CamkitWarning
from camkit.explain import Explainer
from camkit.explanation import Explanation
from camkit.loss import to_model
from camkit.methods import as_method
from camkit.pictures import as_images, as_region
from camkit.precision import single
from camkit.samples import Sample
from camkit.statistics import Interval, bootstrap, words
from camkit.threats import Threat


@dataclass(frozen=True)
class Design:
    """What is compared with what.

    Attributes:
        attacks: names. One that moves the explanation moves the map of the first method.
        methods: names of methods of kind ``map``.
        epsilons: the budgets, in the unit of each attack's threat model. An attack that looks for the smallest change
            takes none and runs once.
        norm: the threat model; each attack's first if left out.
        layer: the target layer, as for an Explainer.
        options: options of attacks and methods, ``name.option``.
        noise: the standard deviation of the noise that a detector adds, in pixels of [0, 1].
        draws: how often it does.
        seed: of the noise, and of attacks that have an option ``seed`` and were given none.
    """

    attacks: Sequence[str]
    methods: Sequence[str]
    epsilons: Sequence[float]
    norm: str | None = None
    layer: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    noise: float = 4 / 255
    draws: int = 4
    seed: int = 0

    def check(self) -> None:
        """Looks at all that can be seen without a model.

        Raises:
            CamkitError: a name is not known, a method has no map, an attack needs a class to work towards, or a number
                is out of its range.
        """
        if not self.attacks or not self.methods or not self.epsilons:
            raise CamkitError("At least one attack, one method and one epsilon are needed.")
        for name in self.attacks:
            found = as_attack(name)
            norm_of(found, self.norm)
            if "untargeted" not in found.goals:
                raise CamkitError(
                    f"The attack '{name}' works towards a class, and there is none for all images; leave it out."
                )
        for name in self.methods:
            kind = as_method(name).kind
            if kind != "map":
                raise CamkitError(f"The method '{name}' gives {kind}, and drift is measured on maps; leave it out.")
        if not 0 < self.noise < 1:
            raise CamkitError(f"The noise was {self.noise:g}; a standard deviation above 0 and below 1 is expected.")

    def runs(self, name: str) -> list[float | None]:
        """The budgets that an attack runs with."""
        return [None] if norm_of(as_attack(name), self.norm) == "smallest" else list(self.epsilons)

    @property
    def steps(self) -> int:
        """How many times each image is attacked."""
        return sum(len(self.runs(name)) for name in self.attacks)

    def check_budgets(self, pixels: Tensor) -> None:
        """Raises `CamkitError` where an attack's threat model has no such budget for images [B, C, H, W]."""
        for name in self.attacks:
            for epsilon in self.runs(name):
                Threat.checked(norm_of(as_attack(name), self.norm), epsilon, pixels)

    def options_of(self, name: str) -> dict[str, Any]:
        """An attack's own options."""
        own = {key.rpartition(".")[2]: value for key, value in self.options.items() if key.rpartition(".")[0] == name}
        seeded = "seed" in as_attack(name).signature.options_model.model_fields
        return {"seed": self.seed, **own} if seeded else own

    @property
    def method_options(self) -> dict[str, Any]:
        """The methods' options, as an Explainer takes them."""
        return {key: value for key, value in self.options.items() if key.rpartition(".")[0] in self.methods}


@dataclass(frozen=True)
class Row:
    """One image under one attack with one budget, as one method explains it.

    Attributes:
        image: its name.
        attack, norm, epsilon, method: see `Design`; epsilon is None where the smallest change was looked for.
        moves: what the attack is to move: the prediction or the explanation.
        label: the class that was attacked and is explained.
        already_wrong: whether the model got it wrong as it was; then nothing was attacked, and all that follows is NaN.
        success: whether the attack did it, 0 or 1.
        distance: how far the image was moved, in the norm's unit.
        iou, rank_correlation, ssim, centre_shift: see `camkit.drift.Drift`.
        energy_before, energy_after: the share of the heatmap in the class's boxes; NaN without boxes.
        tremor_before, tremor_after: by how much a little noise moves the map of the predicted class: 1 minus the rank
            correlation, the mean over draws; a detector sees no more than that.
    """

    image: str
    attack: str
    norm: str
    epsilon: float | None
    method: str
    moves: str
    label: int
    already_wrong: bool
    success: float = math.nan
    distance: float = math.nan
    iou: float = math.nan
    rank_correlation: float = math.nan
    ssim: float = math.nan
    centre_shift: float = math.nan
    energy_before: float = math.nan
    energy_after: float = math.nan
    tremor_before: float = math.nan
    tremor_after: float = math.nan


@dataclass(frozen=True)
class Step:
    """What one attack with one budget did to one batch.

    Attributes:
        rows: one for each image and method.
        result: the attack's.
        before, after: the explanations by method, of the attacked class.
    """

    rows: list[Row]
    result: AttackResult
    before: Mapping[str, Explanation]
    after: Mapping[str, Explanation]


def one_per_picture(samples: Iterable[Sample], count: int | None = None) -> list[Sample]:
    """The first question about each picture, of at most `count` pictures: questions about one are not independent.

    Raises:
        CamkitError: there is no sample.
    """
    found: list[Sample] = []
    for sample in samples:
        last = found[-1] if found else None
        if last and (sample.picture is last.picture or (sample.name and sample.name == last.name)):
            continue
        found.append(sample)
        if len(found) == count:
            break
    if not found:
        raise CamkitError("The data set has no samples, so there is nothing to attack.")
    return found


def study(explainer: Explainer, samples: Sequence[Sample], design: Design, *, batch_size: int = 16) -> Iterator[Step]:
    """Attacks samples, batch by batch, with every attack and budget of the design.

    A sample's class is attacked, or where that is negative the model's prediction. Attacks use up their budget: images
    that are fooled do not leave the batch, so that drift can be read against the budget.

    Raises:
        CamkitError: something in the design is not known or out of its range, or the model has no preprocessing.
    """
    design.check()
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        images, regions, labels = _tensors(explainer, batch)
        names = [sample.name or f"image-{place:05}" for place, sample in enumerate(batch, start)]
        original = single(to_pixels(explainer, images))
        design.check_budgets(original)
        before = _explain(explainer, design, images, labels)
        # the same noise before and after, and in every batch
        noise = design.noise * torch.randn(
            (design.draws, *original.shape[1:]), generator=torch.Generator().manual_seed(design.seed)
        ).to(original)
        tremor_before = _tremor(explainer, design, original, noise)
        for name in design.attacks:
            for epsilon in design.runs(name):
                result = _attacked(explainer, design, images, labels, name, epsilon)
                after = _explain(explainer, design, result.images, result.labels)
                tremor_after = _tremor(explainer, design, result.pixels, noise)
                rows = [
                    row
                    for method in design.methods
                    for row in _rows(
                        names,
                        result,
                        before[method],
                        after[method],
                        regions,
                        tremor_before[method],
                        tremor_after[method],
                    )
                ]
                yield Step(rows, result, before, after)


# How each measure is read: its name in print, and whether more of it means a more stable map (None: neither).
MEASURES: dict[str, tuple[str, bool | None]] = {
    "success": ("attack success", None),
    "iou": ("IoU of strongest fifths", True),
    "rank_correlation": ("rank correlation", True),
    "ssim": ("SSIM", True),
    "centre_shift": ("shift of centre", False),
    "energy_before": ("energy in box before", None),
    "energy_after": ("energy in box after", None),
    "detection": ("detection AUC", None),
}


@dataclass(frozen=True)
class Cell:
    """All images under one attack with one budget, as one method explains them; `measures` as in `MEASURES`."""

    attack: str
    norm: str
    epsilon: float | None
    method: str
    measures: Mapping[str, Interval]


def summarise(rows: Sequence[Row]) -> list[Cell]:
    """The means over the images that the model got right, each with its interval, in the order of the rows."""
    grouped: dict[tuple[str, str, float | None, str], list[Row]] = {}
    for row in rows:
        grouped.setdefault((row.attack, row.norm, row.epsilon, row.method), []).append(row)
    cells = []
    for (name, norm, epsilon, method), members in grouped.items():
        measures = {
            measure: bootstrap([getattr(row, measure) for row in members])
            for measure in MEASURES
            if measure != "detection"
        }
        measures["detection"] = drift.detection(
            [row.tremor_before for row in members], [row.tremor_after for row in members]
        )
        cells.append(Cell(name, norm, epsilon, method, measures))
    return cells


@dataclass(frozen=True)
class Stability:
    """How much of a method's maps is left, each image's mean over attacks and budgets.

    `lead` is by how much the IoU is above that of the method that comes next, image by image; None for the last.
    """

    method: str
    iou: Interval
    rank_correlation: Interval
    ssim: Interval
    centre_shift: Interval
    lead: Interval | None


def ranking(rows: Sequence[Row]) -> list[Stability]:
    """The methods, the most stable first, by IoU.

    Attacks on the explanation are aimed at one of the methods, and count only if there are no others. Images that some
    method cannot be judged on are left out of what is compared in pairs.
    """
    counted = [row for row in rows if row.moves == "prediction"] or list(rows)
    methods = list(dict.fromkeys(row.method for row in counted))
    means = {
        method: {
            measure: _image_means([row for row in counted if row.method == method], measure)
            for measure in ("iou", "rank_correlation", "ssim", "centre_shift")
        }
        for method in methods
    }
    intervals = {method: {what: bootstrap(values) for what, values in found.items()} for method, found in means.items()}
    ordered = sorted(methods, key=lambda method: -np.nan_to_num(intervals[method]["iou"].value, nan=-1.0))
    return [
        Stability(
            method,
            **intervals[method],
            lead=bootstrap(means[method]["iou"] - means[following]["iou"]) if following else None,
        )
        for method, following in zip(ordered, [*ordered[1:], None], strict=True)
    ]


def verdict_on_stability(ranked: Sequence[Stability]) -> str:
    """Which method's maps are the most stable, in one or two sentences."""
    first = ranked[0]
    if first.iou.count == 0:
        return "No image could be judged: the model got none of them right, or all maps are flat."
    said = f"IoU of the strongest fifths before and after {words(first.iou)}"
    if first.lead is None:
        return f"{first.method} is the only method: {said}."
    second = ranked[1]
    lead = f"{words(first.lead, signed=True)} ahead of {second.method}"
    if first.lead.low > 0:
        return f"{first.method} is the most stable: {said}, {lead}, image by image."
    return (
        f"No method is clearly the most stable: {first.method} comes first with {said}, but it is {lead}, image by "
        f"image, and that interval holds 0."
    )


def verdict_on_detection(cells: Sequence[Cell]) -> str:
    """Whether drift under noise gives attacks away, in two sentences."""
    judged = [cell for cell in cells if cell.measures["detection"].count]
    if not judged:
        return "Detection could not be judged: there is no image that the model got right and whose maps have an order."
    above = sum(cell.measures["detection"].low > 0.5 for cell in judged)
    below = sum(cell.measures["detection"].high < 0.5 for cell in judged)
    best, worst = (choose(judged, key=lambda cell: cell.measures["detection"].value) for choose in (max, min))
    counted = (
        f"The interval lies above 0.5 in {above} of {len(judged)} cases, below it in {below}, and holds it in "
        f"{len(judged) - above - below}."
    )
    extremes = (
        f"AUC from {words(worst.measures['detection'])} ({_where(worst)}) to {words(best.measures['detection'])} "
        f"({_where(best)})"
    )
    if above == below == 0:
        return f"Drift under noise does not give attacks away: {extremes}. {counted}"
    if above == 0:
        return f"Attacked images drift less under noise than clean ones, if they differ: {extremes}. {counted}"
    if best.measures["detection"].low > 0.9 and above == len(judged):
        return f"Drift under noise gives attacks away: {extremes}. {counted}"
    return f"Drift under noise gives attacks away in part: {extremes}. {counted}"


def budget_words(epsilon: float | None, norm: str) -> str:
    """A budget as people write it: ``8/255`` where pixels are counted in levels of 8 bits."""
    if epsilon is None:
        return "smallest"
    levels = epsilon * 255
    return f"{levels:.4g}/255" if norm == "linf" else f"{epsilon:.4g}"


def _where(cell: Cell) -> str:
    return f"{cell.attack} {budget_words(cell.epsilon, cell.norm)}, {cell.method}"


def _image_means(rows: Sequence[Row], measure: str) -> NDArray[np.float64]:
    """The mean of a measure over the rows of each image, in the order of the images; NaN where there is none."""
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row.image, []).append(getattr(row, measure))
    return np.array(
        [np.mean(judged) if (judged := [v for v in one if math.isfinite(v)]) else math.nan for one in values.values()]
    )


def _tensors(explainer: Explainer, batch: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
    """Images [B, C, H, W], the regions [B, H, W] of the asked classes, and their indices [B], none negative."""
    images = as_images(explainer, [sample.picture for sample in batch])
    regions = torch.stack([as_region(explainer, sample.picture.size, sample.boxes) for sample in batch])
    asked = torch.tensor([sample.class_index for sample in batch], device=explainer.device)
    with torch.no_grad():
        predicted = explainer.logits(images).argmax(dim=1)
    return images, regions.to(explainer.device), torch.where(asked < 0, predicted, asked)


def _attacked(
    explainer: Explainer, design: Design, images: Tensor, labels: Tensor, name: str, epsilon: float | None
) -> AttackResult:
    return attack(
        explainer,
        images,
        name,
        epsilon=epsilon,
        norm=design.norm,
        labels=labels,
        options=design.options_of(name),
        method=design.methods[0],
        layer=design.layer,
        early_stop=False,
    )


def _explain(explainer: Explainer, design: Design, images: Tensor, classes: Any) -> dict[str, Explanation]:
    """The explanations by method."""
    with warnings.catch_warnings():
        # a blank map has no drift, which is counted
        warnings.simplefilter("ignore", CamkitWarning)
        found = explainer(
            images, list(design.methods), target=classes, layer=design.layer, options=design.method_options
        )
    return {explanation.method: explanation for explanation in found}


def _tremor(explainer: Explainer, design: Design, pixels: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """By how much noise [draws, C, H, W] moves the maps of the predicted classes of pixels [B, C, H, W], [B] each."""

    def shown(given: Tensor) -> Tensor:
        return to_model(explainer, given).to(explainer.dtype)

    still = _explain(explainer, design, shown(pixels), "top")
    classes = next(iter(still.values())).targets
    moved = [_explain(explainer, design, shown((pixels + one).clamp(0, 1)), classes) for one in noise]
    return {
        method: torch.stack([1 - drift.rank_correlation(base.maps, one[method].maps) for one in moved]).mean(dim=0)
        for method, base in still.items()
    }


def _rows(
    names: Sequence[str],
    result: AttackResult,
    before: Explanation,
    after: Explanation,
    regions: Tensor,
    tremor_before: Tensor,
    tremor_after: Tensor,
) -> Iterator[Row]:
    found = drift.Drift.between(before, after)
    values: Mapping[str, list[float]] = {
        name: value.float().tolist()
        for name, value in {
            "success": result.success,
            "distance": result.distance,
            "iou": found.iou,
            "rank_correlation": found.rank_correlation,
            "ssim": found.ssim,
            "centre_shift": found.centre_shift,
            "energy_before": drift.energy_inside(before.heatmaps, regions),
            "energy_after": drift.energy_inside(after.heatmaps, regions),
            "tremor_before": tremor_before,
            "tremor_after": tremor_after,
        }.items()
    }
    known = as_attack(result.attack)
    for index, name in enumerate(names):
        wrong = bool(result.already_wrong[index])
        yield Row(
            name,
            result.attack,
            result.norm,
            result.epsilon if math.isfinite(result.epsilon) else None,
            before.method,
            known.moves,
            int(result.labels[index]),
            wrong,
            **({} if wrong else {what: value[index] for what, value in values.items()}),
        )
