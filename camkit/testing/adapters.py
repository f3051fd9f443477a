"""The conformance kit for adapters: what an adapter says of a model, held against the model.

Each promise is checked by itself, so that one report tells all that is wrong.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from camkit.cut import Cut, Layer
from camkit.errors import CamkitError, CamkitWarning
from camkit.explain import Explainer
from camkit.explanation import Explanation
from camkit.layout import Layout, readings
from camkit.targets import Target
from camkit.testing.equality import assert_informative, relative_error
from camkit.testing.formats import refusals
from camkit.testing.oracle import Oracle, Reference
from camkit.walk import walk

PROMISES = (
    "the layer runs once",
    "the layout is right",
    "the gradient is not zero",
    "eager equals the oracle",
    "other named layers can be explained",
    "exports equal the oracle",
)
# An occluder is put at so many places down and across.
PLACES = 4
# From which similarity on a reading of the layer's output follows the occluder. Right readings have 0.44 to 0.98 where
# a layer does not mix all positions, whereas other grids of the same tokens have at most 0.4 of that, and channels read
# as places none.
LEAST_SIMILARITY = 0.25
# How much of the change must depend on where the occluder is for the layout to be judged by it: of 123 untrained models
# of torchvision and timm some twenty did not follow the occluder, all of them with less.
LEAST_CONTRAST = 0.25
# How far a map may be from the oracle's, relative to its largest value.
LARGEST_ERROR = 1e-3
# How far rounding may move a hidden value, as a shift of images with a deviation of 1.
_ROUNDING = 1e-5


@dataclass
class AdapterReport:
    """What was found of one model and its adapter.

    Attributes:
        adapter, rule: the adapter's name, and how the model got it.
        layer: path of the target layer.
        layout: how its output is read.
        grid: the map's height and width; channels: its depth.
        gradient_share: the share of the map's positions with a gradient.
        follows: how much the change in the activations looks like the occluder that caused it, as a cosine of maps.
        contrast: the share of that change that depends on where the occluder is.
        error: the largest error of the map against the float64 oracle, relative to the map's largest value.
        layers: for each other named target its path, or why it cannot be had.
        exports: for each format ``""``, or why the export failed.
        kept: by promise, what was measured.
        failures: by promise, the sentence that says how it is broken.
        remarks: what is worth knowing and breaks no promise.
    """

    adapter: str = ""
    rule: str = ""
    layer: str = ""
    layout: str = ""
    grid: tuple[int, int] = (0, 0)
    channels: int = 0
    gradient_share: float = 0.0
    follows: float = 0.0
    contrast: float = 0.0
    error: float = float("nan")
    layers: dict[str, str] = field(default_factory=dict)
    exports: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every promise that was checked is kept."""
        return not self.failures


def check_adapter(
    explainer: Explainer,
    images: Tensor,
    *,
    target: str | None = None,
    exports: bool = True,
    progress: Callable[[str], None] = lambda promise: None,
) -> AdapterReport:
    """Checks what an adapter says of a model; run it in a test of your adapter file.

    The promises: the adapter describes the model; its layer exists and runs once; the layout is right (an occluder
    that moves over the image moves the change in the activations with it, more than by any other reading of that
    output); most positions have a gradient; Grad-CAM
    equals the float64 oracle; every other named layer can be explained; the explanation can be exported to every
    format and agrees with the oracle there.

    Args:
        explainer: the model with its adapter, in float32.
        images: [B, C, H, W], two at least.
        target: the target function; by default ``class`` of class 1, or ``embedding`` for a model without classes.
        exports: whether to export, which takes longest.
        progress: is told the promise that is checked next.

    Returns:
        The report; a promise that hangs on a broken one is left out.
    """
    check = _Check(explainer, images, target, AdapterReport())
    steps: list[Callable[[], str]] = [
        check.layer_runs_once,
        check.layout_is_right,
        check.gradient_is_not_zero,
        check.equals_the_oracle,
        check.named_layers_can_be_explained,
        check.exports_equal_the_oracle,
    ]
    for promise, step in zip(PROMISES if exports else PROMISES[:-1], steps, strict=False):
        progress(promise)
        try:
            with _quiet():
                check.report.kept[promise] = step()
        except (CamkitError, AssertionError) as error:
            check.report.failures[promise] = str(error)
            break
    return check.report


class _Check:
    def __init__(
        self,
        explainer: Explainer,
        images: Tensor,
        target: str | None,
        report: AdapterReport,
    ) -> None:
        self.explainer, self.images, self.report = explainer, images, report
        self.target = Target(target or "class", class_index=1)
        self.given = target
        self.layer = Layer("", "", explainer.module)
        self.size = (images.shape[2], images.shape[3])

    def layer_runs_once(self) -> str:
        resolved = self.explainer.resolve(self.images)
        adapter, module = resolved.adapter, self.explainer.module
        self.report.adapter, self.report.rule = adapter.name, resolved.rule
        if adapter.note:
            self.report.remarks.append(adapter.note)
        if not adapter.reader(module).classes and self.given is None:
            self.target = Target("embedding")
        self.layer = adapter.layer(module, images=self.images)
        self.report.layer = self.layer.path
        calls = walk(module, self.images[:1]).layer(self.layer.path).calls
        if calls != 1:
            raise AssertionError(
                f"The layer '{self.layer.path}' runs {calls} times in a forward pass; a target layer runs once."
            )
        return self.layer.path

    def _open_class(self) -> int:
        """The first class from 1 on of which the model says something: one may end in a ReLU that is closed."""
        with torch.no_grad():
            said = (self.explainer.logits(self.images) != 0).all(dim=0)
        return next((index for index in range(1, len(said)) if said[index]), min(1, len(said) - 1))

    def layout_is_right(self) -> str:
        output = self._output(self.images)
        layout = self._layout(output)
        maps = layout.to_maps(output)
        self.report.layout = str(layout)
        self.report.channels, self.report.grid = maps.shape[1], (maps.shape[2], maps.shape[3])
        if min(self.report.grid) < 2:
            raise AssertionError(
                f"The map is {maps.shape[2]}x{maps.shape[3]}, in which nothing can move; give larger images."
            )
        similarity, self.report.contrast = self._follow_an_occluder(layout)
        best = max(similarity, key=lambda reading: similarity[reading])
        self.report.follows = similarity[layout]
        if similarity[best] >= LEAST_SIMILARITY:
            if best != layout:
                raise AssertionError(
                    f"Read as {layout}, the change in the activations at '{self.layer.path}' does not go where an "
                    f"occluder goes in the image (cosine {similarity[layout]:.2f}); read as {best} it does "
                    f"({similarity[best]:.2f}). Correct layout, prefix, patch or grid."
                )
        elif self.report.contrast >= LEAST_CONTRAST:
            raise AssertionError(
                f"Read as {layout}, the change in the activations at '{self.layer.path}' does not go where an occluder "
                f"goes in the image (cosine {similarity[layout]:.2f}, {LEAST_SIMILARITY} is expected), nor by any "
                f"other reading; correct layout, prefix, patch or grid, or choose another layer."
            )
        else:
            self.report.remarks.append(
                f"the layer mixes all positions (an occluder's place changes {self.report.contrast:.1%} of what it "
                f"changes), so the layout is not confirmed by occlusion"
            )
        return f"{layout}, {maps.shape[2]}x{maps.shape[3]}, {maps.shape[1]} channels"

    def gradient_is_not_zero(self) -> str:
        adapter, module = self.explainer.resolve(self.images).adapter, self.explainer.module
        forward = Cut(module, [self.layer], adapter.reader(module)).forward(self.images, graph=True)
        with torch.enable_grad():
            features = forward.features.float()
            # a mixture of all classes: one class alone may end in a ReLU that is closed at many positions
            mixture = torch.randn(features.shape[1], generator=torch.Generator().manual_seed(0))
            scores = features @ mixture.to(features.device)
        gradient = forward.gradients(scores, retain_graph=False)[self.layer.path]
        share = float((self._layout(gradient).to_maps(gradient) != 0).any(dim=1).float().mean())
        self.report.gradient_share = share
        if share < 0.5:
            raise AssertionError(
                f"Only {share:.0%} of the positions of '{self.layer.path}' have a gradient; choose a layer further "
                f"from the output (camkit doctor shows the gradient of every layer)."
            )
        return f"at {share:.0%} of the positions"

    def equals_the_oracle(self) -> str:
        if self.given is None and self.target.function == "class":
            self.target = Target("class", class_index=self._open_class())
        explanation: Explanation = self.explainer(self.images, target=self.target, relu=False)
        oracle = Oracle(self.explainer, self.images, target=self.target)
        reference = oracle(self.images, explanation.targets)
        assert_informative(reference, self.size)
        errors = relative_error(explanation.maps.cpu(), reference.maps.cpu())
        smooth = ~self._jumps(oracle, reference, errors > LARGEST_ERROR, explanation.targets)
        if not bool(smooth.any()):
            raise AssertionError(
                "With these weights the map changes as much within rounding as between images, so that it cannot be "
                "compared; check the model with trained weights, or with a norm where its activations grow."
            )
        self.report.error = float(errors[smooth].max())
        if not bool(smooth.all()):
            self.report.remarks.append(
                f"at {int((~smooth).sum())} of {len(smooth)} images the map itself jumps within rounding; left out"
            )
        if not self.report.error <= LARGEST_ERROR:
            raise AssertionError(
                f"The map differs from the float64 oracle by {self.report.error:.1e} of its largest value; "
                f"{LARGEST_ERROR:.0e} is allowed."
            )
        return f"within {self.report.error:.1e}"

    def named_layers_can_be_explained(self) -> str:
        adapter = self.explainer.resolve(self.images).adapter
        for name in adapter.targets:
            if name == self.layer.name:
                continue
            try:
                found: Explanation = self.explainer(self.images[:1], target=self.target, layer=name, relu=False)
            except CamkitError as error:
                self.report.layers[name] = f"none: {error}"
                continue
            if bool((found.maps == 0).all()):
                raise AssertionError(f"The map at the layer '{name}' ({found.layer}) is zero everywhere.")
            self.report.layers[name] = f"{found.layer} {found.maps.shape[1]}x{found.maps.shape[2]}"
        return ", ".join(f"{name}: {found}" for name, found in self.report.layers.items()) or "there are none"

    def exports_equal_the_oracle(self) -> str:
        # an export is verified against the oracle of this package, so it cannot be imported before it
        from camkit.exports import request

        self.report.exports = refusals(request(self.explainer, target=self.target.name, images=self.images))
        broken = {name: reason for name, reason in self.report.exports.items() if reason}
        if broken:
            raise AssertionError(" ".join(f"{name}: {reason}" for name, reason in broken.items()))
        return ", ".join(self.report.exports)

    def _output(self, images: Tensor) -> Tensor:
        module = self.explainer.module
        forward = Cut(module, [self.layer]).forward(images, graph=False)
        return forward.captured[self.layer.path]

    def _layout(self, output: Tensor) -> Layout:
        adapter = self.explainer.resolve(self.images).adapter
        return adapter.layout_of(self.explainer.module, self.layer, output.shape, self.size)

    def _follow_an_occluder(self, layout: Layout) -> tuple[dict[Layout, float], float]:
        """How well the change goes where an occluder goes, by every reading, and how much its place matters at all.

        The first is the cosine of the change with the occluder, over all places where it is put; the second the share
        of the change that depends on the place, read as the adapter says.
        """
        places = [(row, column) for row in range(PLACES) for column in range(PLACES)]
        occluded = self.images[:1].repeat(len(places), 1, 1, 1)
        occluders = torch.zeros(len(places), *self.size, dtype=torch.float64)
        for image, occluder, (row, column) in zip(occluded, occluders, places, strict=True):
            rows, columns = _part(self.size[0], row), _part(self.size[1], column)
            # turned, not erased: a grey square in a grey corner would change nothing
            image[:, rows, columns] = 1 - image[:, rows, columns]
            occluder[rows, columns] = 1
        before = self._output(self.images)[:1]
        after = torch.cat([self._output(part) for part in occluded.split(len(self.images))])
        similarity, contrast = {}, 0.0
        for reading in readings(layout, before.shape):
            changes = (reading.to_maps(after) - reading.to_maps(before)).double().norm(dim=1).cpu()
            own = _depending_on_place(changes)
            expected = _depending_on_place(F.adaptive_avg_pool2d(occluders, changes.shape[1:]))
            similarity[reading] = float(F.cosine_similarity(own.flatten(), expected.flatten(), dim=0))
            if reading == layout:
                contrast = float(own.abs().sum() / len(own))
        return similarity, contrast

    def _jumps(self, oracle: Oracle, reference: Reference, suspects: Tensor, classes: Tensor) -> Tensor:
        """Which of the suspects [B] have a map that jumps when the image moves by as much as rounding does."""
        found = torch.zeros(len(suspects), dtype=torch.bool)
        if bool(suspects.any()):
            noise = torch.randn(self.images.shape, generator=torch.Generator().manual_seed(0))
            for sign in (1, -1):
                near = oracle(self.images.double() + sign * _ROUNDING * noise.to(self.images.device), classes)
                found |= (relative_error(near.maps, reference.maps) > LARGEST_ERROR / 2).cpu()
        return found & suspects.cpu()


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CamkitWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _depending_on_place(changes: Tensor) -> Tensor:
    """Changes [places, h, w], each as shares of its sum, less what changes wherever the occluder is."""
    shares = changes / changes.sum(dim=(1, 2), keepdim=True)
    return shares - shares.mean(dim=0)


def _part(pixels: int, place: int) -> slice:
    return slice(place * pixels // PLACES, (place + 1) * pixels // PLACES)


def as_record(report: AdapterReport) -> Mapping[str, object]:
    """The report as JSON values."""
    return {**report.__dict__, "grid": list(report.grid)}
