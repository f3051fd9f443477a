"""The Explainer: one pass over a model for any number of methods, layers and targets; and the Explanation it returns."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from camkit import cut, heatmap
from camkit.adapter import Adapter, Resolved, find_adapter
from camkit.cut import Cut, Forward, Layer
from camkit.errors import CamkitError, CamkitWarning
from camkit.methods import Kind, Method
from camkit.quantities import Pass, Scored, single
from camkit.registry import registry
from camkit.targets import Target, TargetFunction, class_label, parse_targets, resolve_top

if TYPE_CHECKING:
    from camkit.models import LoadedModel
    from camkit.preprocessing import Preprocessing


@dataclass(frozen=True)
class Explanation:
    """What one method says about one layer and one target, for a batch of images.

    Attributes:
        maps: signed maps [B, h, w], float32, on the model's device; before any ReLU. Methods of kind ``pixels`` give
            [B, C, H, W], of kind ``concepts`` [B, k, h, w].
        logits: the model's output [B, classes].
        targets: the class that was explained, int64 [B].
        scores: the target's value, [B].
        method, options: the method's name and all of its options.
        layer: path of the target layer; None where a method has none.
        target: what was asked for.
        size: height and width of the images.
        relu: whether heatmaps show the positive part only.
        class_names: names of the classes, if known.
        probability: ``softmax`` or ``sigmoid``: how logits become probabilities.
        kind: ``map``, ``pixels`` or ``concepts``.
        notes: one sentence for each image whose map is blank or not finite; empty where all is well.
    """

    maps: Tensor
    logits: Tensor
    targets: Tensor
    scores: Tensor
    method: str
    options: Mapping[str, Any]
    layer: str | None
    target: Target
    size: tuple[int, int]
    relu: bool = True
    class_names: Sequence[str] | None = None
    probability: str = "softmax"
    kind: Kind = "map"
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def heatmaps(self) -> Tensor:
        """Heatmaps [B, H, W] at the size of the images, in [0, 1]; in [-1, 1] without ReLU."""
        maps = self.maps if self.kind == "map" else self.maps.sum(dim=1)
        return heatmap.heatmaps(maps, self.size, relu=self.relu)

    @property
    def probabilities(self) -> Tensor:
        """The probability of every class, [B, classes]."""
        logits = single(self.logits)
        return logits.sigmoid() if self.probability == "sigmoid" or logits.shape[1] == 1 else logits.softmax(dim=1)

    def class_name(self, index: int) -> str:
        """The name of a class, or its number."""
        return class_label(index, self.class_names)

    def overlay(self, images: Any, *, colormap: str | None = None, alpha: float = 0.5) -> "np.ndarray[Any, Any]":
        """Heatmaps drawn over pictures: uint8 [B, H, W, 3].

        `images` are the pictures as the model saw them: uint8 [B, H, W, 3], or a tensor [B, 3, H, W] or [B, 1, H, W]
        in [0, 1]. A tensor that was normalised for the model is brought to that range first.
        """
        from camkit import visualize

        heat = self.heatmaps.detach().cpu().numpy()
        pictures = as_pictures(images)
        if len(pictures) != len(heat):
            raise CamkitError(f"{len(pictures)} pictures were given for {len(heat)} explanations.")
        return np.stack(
            [
                visualize.overlay(picture, one, signed=not self.relu, colormap=colormap, alpha=alpha)
                for picture, one in zip(pictures, heat, strict=True)
            ]
        )

    def record(self, index: int) -> dict[str, Any]:
        """One image's result as JSON values: prediction, target and statistics of the map."""
        probabilities = self.probabilities[index]
        top, explained = int(probabilities.argmax()), int(self.targets[index])
        values = self.maps[index].detach().float()
        heat = self.heatmaps[index]
        row, column = divmod(int(heat.argmax()), heat.shape[1])
        return {
            "method": self.method,
            "options": dict(self.options),
            "layer": self.layer,
            "prediction": {"class": top, "name": self.class_name(top), "probability": float(probabilities[top])},
            "target": {
                "function": self.target.function,
                "asked": self.target.label,
                "class": explained,
                "name": self.class_name(explained),
                "probability": float(probabilities[explained]),
                "score": float(self.scores[index]),
            },
            "map": {
                "shape": list(values.shape),
                "minimum": float(values.min()),
                "maximum": float(values.max()),
                "mean": float(values.mean()),
                "positive_share": float((values > 0).float().mean()),
                "peak": {"x": column, "y": row},
            },
            "relu": self.relu,
            "note": self.notes[index] if self.notes else "",
        }

    def save(self, directory: str | Path, images: Any = None, *, stem: str = "image") -> list[Path]:
        """Writes one PNG per image (an overlay if `images` are given, else the heatmap) and a JSON line for each.

        Returns the paths of the pictures. The lines are added to ``explanations.jsonl`` in the directory.
        """
        from camkit import output, visualize

        folder = output.directory(Path(directory))
        if images is None:
            height, width = self.size
            images = np.full((len(self.targets), height, width, 3), 255, dtype=np.uint8)
        paths, lines = [], []
        for index, picture in enumerate(self.overlay(images)):
            name = output.file_name(stem, str(index), self.method, self.layer, self.class_name(int(self.targets[index])))
            visualize.save_png(folder / f"{name}.png", picture)
            paths.append(folder / f"{name}.png")
            lines.append({"picture": f"{name}.png", **self.record(index)})
        output.append_lines(folder / "explanations.jsonl", lines)
        return paths

    def _repr_html_(self) -> str:
        from html import escape

        from camkit import visualize

        height, width = self.size
        white = np.full((len(self.targets), height, width, 3), 255, dtype=np.uint8)
        figures = []
        for index, picture in enumerate(self.overlay(white)):
            name = escape(self.class_name(int(self.targets[index])))
            uri = visualize.data_uri(visualize.upscale(picture, max(1, math.ceil(160 / height))))
            figures.append(f'<figure style="display:inline-block;margin:4px"><img src="{uri}" alt="{name}" '
                           f'style="height:160px"><figcaption>{name}</figcaption></figure>')
        caption = escape(f"{self.method} at {self.layer}")
        return f"<div><p>{caption}</p>{''.join(figures)}</div>"


Many = list[Explanation]


class Explainer:
    """Explains one model.

    Args:
        model: a `torch.nn.Module` in evaluation mode, or a model from `camkit.load_model`. It is left as it was.
        layer: the target layer: a name from the adapter (``last``, ``stage3``) or a module path (``layer4.-1``); a
            list gives several. By default the adapter's ``last``.
        adapter: an `Adapter`, or the path of an adapter file. By default it is found by the model's class.
        class_names: names of the classes, so that targets can be given by name.
        preprocessing: how images were normalised, which attacks need; a loaded model brings its own.

    Raises:
        CamkitError: the model is in training mode, or the layer does not exist.
    """

    def __init__(
        self,
        model: "nn.Module | LoadedModel",
        layer: str | Sequence[str] | None = None,
        adapter: Adapter | Path | str | None = None,
        *,
        class_names: Sequence[str] | None = None,
        preprocessing: "Preprocessing | None" = None,
    ) -> None:
        module = model if isinstance(model, nn.Module) else getattr(model, "module", None)
        if not isinstance(module, nn.Module):
            raise CamkitError(f"An Explainer needs a torch.nn.Module or a loaded model, not {type(model).__name__}.")
        self.spec: str | None = getattr(model, "spec", None) if module is not model else None
        self.weights: str | None = getattr(model, "weights", None) if module is not model else None
        if module is not model:
            class_names = class_names or getattr(model, "class_names", None)
            preprocessing = preprocessing or getattr(model, "preprocessing", None)
        self.module = cut.unwrap(module)
        self.class_names = tuple(class_names) if class_names else None
        self.preprocessing = preprocessing
        self._given_probability = getattr(model, "probability", None) if module is not model else None
        self._resolved = find_adapter(self.module, adapter)
        self.layer = layer
        require_evaluation_mode(self.module)
        if layer is not None and self._resolved is not None:
            for name in [layer] if isinstance(layer, str) else layer:
                self._resolved.adapter.layer(self.module, name)

    @property
    def probability(self) -> str:
        """``softmax`` or ``sigmoid``: how logits become probabilities."""
        return self._given_probability or (self._resolved.adapter.probability if self._resolved else "softmax")

    @property
    def device(self) -> torch.device:
        """The device of the model's parameters."""
        return next((parameter.device for parameter in self.module.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the model's parameters."""
        return next((parameter.dtype for parameter in self.module.parameters()), torch.float32)

    def logits(self, images: Tensor) -> Tensor:
        """The model's logits [B, classes], differentiable in the images where the caller records a graph."""
        output = self.resolve(images).adapter.output
        with cut.lock(self.module):
            return cut.select_logits(self.module(images), output)

    def resolve(self, images: Tensor) -> Resolved:
        """The model's adapter and the reason for it; a model that none describes is probed with these images."""
        if self._resolved is None:
            from camkit.probe import probe

            self._resolved = probe(self.module, images)
        return self._resolved

    @overload
    def __call__(
        self,
        images: Tensor,
        method: str = ...,
        target: "int | str | Tensor | Target" = ...,
        layer: str | None = ...,
        options: Mapping[str, Any] | None = ...,
        relu: bool = ...,
    ) -> Explanation: ...

    @overload
    def __call__(
        self,
        images: Tensor,
        method: str | Sequence[str] = ...,
        target: Any = ...,
        layer: str | Sequence[str] | None = ...,
        options: Mapping[str, Any] | None = ...,
        relu: bool = ...,
    ) -> Any: ...

    def __call__(
        self,
        images: Tensor,
        method: str | Sequence[str] = "gradcam",
        target: Any = "top",
        layer: str | Sequence[str] | None = None,
        options: Mapping[str, Any] | None = None,
        relu: bool = True,
    ) -> Any:
        """Explains a batch in one pass.

        Args:
            images: [B, C, H, W], preprocessed as the model expects.
            method: name of a method, or a list of names.
            target: ``top``, ``top-3``, ``last``, a class index or name, ``function:class``, a tensor [B] of indices, a
                `Target`, or a list of these.
            layer: as for the constructor.
            options: the method's options by name; with several methods as ``method.option``.
            relu: whether heatmaps keep the positive part only.

        Returns:
            One Explanation; a list of them, in the order method, layer, target, if any of the three was a list.

        Raises:
            CamkitError: something given is not known or does not fit the model.
        """
        methods = [method] if isinstance(method, str) else list(method)
        chosen = layer if layer is not None else self.layer
        layers: list[str | None] = [chosen] if chosen is None or isinstance(chosen, str) else list(chosen)
        targets, several = parse_targets(target, self.class_names, registry().names("target"))
        several = several or not isinstance(method, str) or not (chosen is None or isinstance(chosen, str))
        if not methods or not layers:
            raise CamkitError("At least one method and one layer are needed.")
        found = self._explain(images, methods, layers, targets, options or {}, relu)
        return found if several else found[0]

    def _explain(
        self,
        images: Tensor,
        names: Sequence[str],
        layers: Sequence[str | None],
        targets: Sequence[Target],
        options: Mapping[str, Any],
        relu: bool,
    ) -> Many:
        images = self._checked(images)
        plan = self.plan(images, names, layers, options)
        for method, target in product(plan.methods, targets):
            if not method.class_specific and target.function != "class":
                raise CamkitError(
                    f"The method '{method.name}' gives the same map for every class, so the target "
                    f"'{target.label}' has no meaning for it."
                )
        forward = plan.cut.forward(images, graph=plan.needs_graph)
        made: dict[tuple[int, int, int], Explanation] = {}
        for t, target in enumerate(targets):
            function: TargetFunction = registry().get("target", target.function)
            class_index = target.resolve(forward.logits)
            scored = plan.score(forward, function, class_index, target.inputs, last=t == len(targets) - 1)
            for (m, l), raw in plan.maps(forward, scored, checks=True):
                method, layer = plan.methods[m], plan.layers[l]
                maps = raw.detach().float()
                made[m, l, t] = Explanation(
                    maps=maps,
                    logits=forward.logits.detach(),
                    targets=class_index,
                    scores=scored.scores.detach(),
                    method=names[m],
                    options=plan.options[m],
                    layer=layer.path,
                    target=target,
                    size=(images.shape[2], images.shape[3]),
                    relu=relu,
                    class_names=self.class_names,
                    probability=self.probability,
                    kind=method.kind,
                    notes=_notes(maps, method, layer, relu),
                )
        return [made[key] for key in product(range(len(names)), range(len(layers)), range(len(targets)))]

    def plan(
        self, images: Tensor, methods: Sequence[str], layers: Sequence[str | None], options: Mapping[str, Any] | None = None
    ) -> "Plan":
        """Everything that is decided before the pass: adapter, layers, methods and their options."""
        require_evaluation_mode(self.module)
        resolved = self.resolve(images)
        found = [registry().get("method", name) for name in methods]
        positions = [resolved.adapter.layer(self.module, name) for name in layers]
        return Plan(
            module=self.module,
            adapter=resolved.adapter,
            methods=found,
            layers=positions,
            options=[method.signature.options(_own_options(options or {}, name, methods)) for method, name in zip(found, methods, strict=True)],
        )

    def _checked(self, images: Tensor) -> Tensor:
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point() or 0 in images.shape:
            got = f"a {images.dtype} tensor of shape {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise CamkitError(f"Images were given as {got}; a floating-point tensor [batch, channels, height, width] is expected.")
        parameter = next(self.module.parameters(), None)
        if parameter is None:
            return images
        if parameter.is_inference():
            raise CamkitError("The model was made in torch.inference_mode, where gradients do not exist; build it outside.")
        if parameter.device != images.device:
            raise CamkitError(f"The images are on {images.device}, the model is on {parameter.device}; move one to the other.")
        if parameter.dtype != images.dtype and not torch.is_autocast_enabled(images.device.type):
            raise CamkitError(f"The images are {images.dtype}, the model is {parameter.dtype}; convert one to the other.")
        return images


@dataclass(frozen=True)
class Plan:
    """One pass as it was planned; the same steps serve eager explanation, tracing, and the oracle."""

    module: nn.Module
    adapter: Adapter
    methods: Sequence[Method]
    layers: Sequence[Layer]
    options: Sequence[Mapping[str, Any]]

    @property
    def cut(self) -> Cut:
        """The model cut at the layers, each path once."""
        unique = {layer.path: layer for layer in self.layers}
        return Cut(self.module, list(unique.values()), self.adapter.output)

    @property
    def needs_graph(self) -> bool:
        """Whether any method differentiates."""
        return any(method.needs_graph for method in self.methods)

    def score(
        self,
        forward: Forward,
        function: TargetFunction,
        class_index: Tensor,
        inputs: Mapping[str, Tensor],
        *,
        last: bool,
    ) -> Scored:
        """The scores of one target, ready to be differentiated; `last` lets go of the graph after the gradient."""
        given = {**inputs, "class_index": class_index}

        def logit_gradient() -> Tensor:
            with torch.inference_mode(False), torch.enable_grad():
                leaf = forward.logits.detach().requires_grad_()
                scores = function.scores(leaf, forward.output, given)
                return torch.autograd.grad(scores.sum(), leaf)[0]

        graph_quantities = {q.name for method in self.methods for q in method.quantities if q.graph}
        with torch.inference_mode(False), torch.set_grad_enabled(self.needs_graph):
            scores = function.scores(forward.logits, forward.output, given)
        return Scored(forward, scores, class_index, logit_gradient, retain_graph=not last or len(graph_quantities) > 1)

    def maps(self, forward: Forward, scored: Scored, *, checks: bool) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """((method, layer), result) for every method at every layer, for one target."""
        height, width = forward.images.shape[2:]
        classifier = self.adapter.find_classifier(self.module)
        with torch.inference_mode(False), torch.no_grad():
            for l, layer in enumerate(self.layers):
                shape = forward.captured[layer.path].shape
                layout = self.adapter.layout_of(self.module, layer, shape, (height, width))
                this = Pass(self.module, scored, layer, layout, classifier, checks)
                for m, method in enumerate(self.methods):
                    yield (m, l), method.compute(this, self.options[m])


def traceable(plan: Plan, target: TargetFunction) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """One method at one layer as a pure function: ``(images, class_index) -> (logits, maps, explained_class)``."""
    if not all(method.traceable for method in plan.methods):
        method = next(method for method in plan.methods if not method.traceable)
        blocking = ", ".join(quantity.name for quantity in method.quantities if not quantity.traceable)
        raise CamkitError(f"The method '{method.name}' cannot be exported, because {blocking} cannot be traced.")

    def explain(images: Tensor, class_index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        forward = plan.cut.forward(images, graph=plan.needs_graph)
        explained = resolve_top(class_index, forward.logits)
        scored = plan.score(forward, target, explained, {}, last=True)
        ((_, maps),) = plan.maps(forward, scored, checks=False)
        return forward.logits.detach(), maps.detach(), explained

    return explain


def require_evaluation_mode(module: nn.Module) -> None:
    """Refuses a model in training mode, whose dropout and batch statistics would make the explanation random."""
    training = next((name for name, child in module.named_modules() if child.training), None)
    if training is not None:
        which = f"its layer '{training}' is" if training else "it is"
        raise CamkitError(f"The model cannot be explained because {which} in training mode; call model.eval() first.")


def as_pictures(images: Any) -> "np.ndarray[Any, Any]":
    """Pictures uint8 [B, H, W, 3] from uint8 arrays, PIL images, or tensors [B, C, H, W]."""
    if isinstance(images, Tensor):
        values = images.detach().float().cpu()
        low, high = values.amin(dim=(1, 2, 3), keepdim=True), values.amax(dim=(1, 2, 3), keepdim=True)
        if float(low.min()) < 0 or float(high.max()) > 1:
            values = (values - low) / (high - low).clamp(min=1e-12)
        values = values.expand(-1, 3, -1, -1) if values.shape[1] == 1 else values
        return (values * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    pictures = np.stack([np.asarray(image) for image in images])
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3:
        raise CamkitError(
            f"Pictures were given as {pictures.dtype} of shape {list(pictures.shape)}; uint8 [batch, height, width, 3] is expected."
        )
    return pictures


def _own_options(options: Mapping[str, Any], name: str, names: Sequence[str]) -> dict[str, Any]:
    own = {}
    for key, value in options.items():
        method, dot, option = key.rpartition(".")
        if not dot and len(names) == 1:
            own[option] = value
        elif not dot:
            raise CamkitError(f"With several methods, write the option '{key}' as 'method.{key}'.")
        elif method == name:
            own[option] = value
        elif method not in names:
            raise CamkitError(f"The option '{key}' is for the method '{method}', which was not asked for.")
    return own


def _notes(maps: Tensor, method: Method, layer: Layer, relu: bool) -> tuple[str, ...]:
    flat = maps.flatten(1)
    finite = flat.isfinite().all(dim=1).tolist()
    zero = (flat == 0).all(dim=1).tolist()
    negative = (flat <= 0).all(dim=1).tolist()
    if all(finite) and not any(zero) and not (relu and any(negative)):
        return ()
    notes = []
    for index in range(len(flat)):
        where = f"The map of image {index} by {method.name} at '{layer.path}'"
        if not finite[index]:
            notes.append(f"{where} is not finite: the activations or gradients overflow; try float32.")
        elif zero[index]:
            notes.append(
                f"{where} is zero everywhere: the layer's positions have no influence on this class (a classifier whose "
                f"weights are zero, or a layer behind a class token's last attention); camkit doctor shows which."
            )
        elif relu and negative[index]:
            notes.append(f"{where} has no positive value, so its heatmap is blank; show the signed map (relu=False).")
        else:
            notes.append("")
    for note in filter(None, notes):
        warnings.warn(note, CamkitWarning, stacklevel=4)
    return tuple(notes)
