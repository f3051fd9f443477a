"""Export of an explanation: what an exporter plugin is given, what it gives back, and how the file suffix finds it."""

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from camkit import output, plugin
from camkit.check import Check
from camkit.errors import CamkitError, unknown
from camkit.explain import AnyMethod, Explainer
from camkit.frames import Frames
from camkit.heatmap import heatmaps
from camkit.injection import Signature, own_options, parse_signature
from camkit.plan import Plan, refuse_untraceable, traceable
from camkit.preprocessing import Preprocessing, Size
from camkit.registry import registry
from camkit.serving import suffix_of
from camkit.targets import Rank, Target, TargetFunction
from camkit.testing.oracle import Oracle, in_double

if TYPE_CHECKING:
    from camkit.registry import Registry

# What is told of each map of a graph.
MAP_FACTS = ("method", "layer", "options", "class_specific")

T = TypeVar("T")
Explain = Callable[..., tuple[Tensor, ...]]
Reference = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class ExportRequest:
    """One or several explanations of a model, ready to be traced into one graph.

    Several formats can be written from one request, which is then traced once, and its oracle asked once.

    Attributes:
        explain: ``(images, class_index [B] int64, *inputs) -> (logits [B, classes], map [B, h, w] signed, …,
            explained_class [B])``, one map for each part; a pure function of its arguments that calls
            `torch.autograd.grad` inside and can be traced with `make_fx`. A negative class index means the top class of
            that image. With `top_k` it takes no class index; maps are [B, k, h, w] and explained classes [B, k].
        oracle: for one map the same in float64 by plain hooks and full autograd, without a cut: ``(images, class_index,
            inputs by name) -> (logits, maps)``. Where there are parts, each has its own.
        image_shape: the shape of one image: (C, H, W), preprocessed; of frames (H, W, 3).
        classes: the number of logits.
        relu: whether the heatmap keeps the positive part of the map only.
        provenance: what is written into the file: model, method, options, layer, class names, preprocessing, versions.
            It holds JSON values only and no path of this machine.
        name: of one among several parts, ``METHOD__LAYER``.
        parts: the single explanations that a graph of several maps, or of several classes, is verified against.
        top_k: how many classes are explained of each image, highest first; None where the class is an input.
        rank: of a part, which of the classes it explains, from 0; None where the class is an input.
        frames: what makes the model's input of pictures, uint8 [B, H, W, 3]; None where images are preprocessed.
        raw: whether the heatmaps are left out.
        half: whether the weights are kept in float16.
        dynamic_size: whether images may have any height and width; `image_shape` is then an example.
        inputs: by name, one image's example [1, ...] of each of the target's own inputs.
    """

    explain: Explain
    oracle: Reference
    image_shape: tuple[int, int, int]
    classes: int
    relu: bool
    provenance: Mapping[str, Any]
    name: str = ""
    parts: "tuple[ExportRequest, ...]" = ()
    top_k: int | None = None
    rank: int | None = None
    frames: Frames | None = None
    raw: bool = False
    half: bool = False
    dynamic_size: bool = False
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    _found: dict[Hashable, Any] = field(init=False, repr=False, default_factory=dict)

    def once(self, what: Hashable, find: Callable[[], T]) -> T:
        """What holds for the files of every format, found for the first of them and kept as long as the request."""
        if what not in self._found:
            self._found[what] = find()
        found: T = self._found[what]
        return found

    def heatmaps(self, maps: Tensor, images: Tensor) -> Tensor:
        """Heatmaps [B, H, W], or [B, k, H, W], of maps [B, h, w], or [B, k, h, w], as large as the images."""
        return heatmaps_of(maps, images.shape, self.frames, relu=self.relu)


def heatmaps_of(maps: Tensor, shape: Sequence[int], frames: Frames | None, *, relu: bool) -> Tensor:
    """See `ExportRequest.heatmaps`; `shape` is that of the images, [B, C, H, W]."""
    every = maps.flatten(0, 1) if maps.ndim == 4 else maps
    if frames is None:
        found = heatmaps(every, (shape[2], shape[3]), relu=relu)
    else:
        found = frames.place(heatmaps(every, frames.region[2:], relu=relu))
    return found.unflatten(0, (-1, maps.shape[1])) if maps.ndim == 4 else found


@dataclass(frozen=True)
class ExportReport:
    """What an export made and how well it was verified."""

    path: Path
    nodes: int
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True)
class Exporter:
    """A registered exporter: it writes a request to a file with its suffix."""

    name: str
    function: Callable[..., ExportReport]
    signature: Signature
    suffix: str
    checked: bool

    @classmethod
    def parse(cls, function: Callable[..., ExportReport], mark: plugin.Mark, registry: "Registry") -> "Exporter":
        """Reads a marked function ``(request: ExportRequest, path: Path, *, options) -> ExportReport``."""
        known: dict[str, object] = {"request": ExportRequest, "path": Path}
        signature = parse_signature(function, f"the exporter '{mark.name}'", known)
        if signature.asks != ("request", "path"):
            raise CamkitError(f"The exporter '{mark.name}' must take 'request' and 'path', in this order.")
        return cls(mark.name, function, signature, mark.facts["suffix"], mark.facts["checked"])


def export(
    explainer: Explainer,
    path: str | Path,
    method: AnyMethod | Sequence[AnyMethod] = "gradcam",
    *,
    layer: str | Sequence[str] | None = None,
    target: str | Target = "class",
    options: Mapping[str, Any] | None = None,
    relu: bool = True,
    images: Tensor | None = None,
    top_k: int | None = None,
    frame_size: Size | None = None,
    raw: bool = False,
    half: bool = False,
    dynamic_size: bool = False,
    format: str | None = None,  # noqa: A002 - what it is called everywhere
    **format_options: Any,
) -> ExportReport:
    """Writes an explanation as one graph that needs no autograd and no Python model, and verifies it first.

    Args:
        explainer: the model.
        path: the file; its suffix chooses the format (``.onnx``, ``.pt``, ``.pt2``, ``.aoti.pt2``).
        method: as for an Explainer, one or several, as layers; so are layer, options and relu. Several share the
            forward pass, and those of one layer its gradient.
        layer: see method.
        options: see method.
        relu: see method.
        target: name of a target function; the class is an input of the graph. Of a target with inputs of its own a
            `Target` that holds an example [1, ...] of each: they become inputs of the graph.
        images: example images [B, C, H, W] that show the input's size; by default the preprocessing's size.
        top_k: explain so many of the highest classes of each image instead of one class that is asked for.
        frame_size: (height, width) of pictures, uint8 [B, H, W, 3]: the graph then preprocesses them itself.
        raw: leave the heatmaps out; the maps are smaller.
        half: keep the weights in float16, half as large; computed is in float32.
        dynamic_size: take images of any height and width that the model takes.
        format: name of the format (``onnx``, ``torchscript``, ``pt2``, ``aotinductor``) for a file of any other suffix.
        format_options: options of the format, such as ``opset``.

    Raises:
        CamkitError: the format is not known or not the suffix's, the method cannot be traced, or the written graph does
            not agree with the float64 oracle. Then no file is left.
    """
    path = Path(path)
    exporter = find_exporter(path, format)
    chosen = exporter.signature.options(format_options)
    output.directory(path.parent)
    prepared = request(
        explainer,
        method,
        layer=layer,
        target=target,
        options=options,
        relu=relu,
        images=images,
        top_k=top_k,
        frame_size=frame_size,
        raw=raw,
        half=half,
        dynamic_size=dynamic_size,
    )
    return exporter.function(prepared, path, **chosen)


def find_exporter(path: Path, name: str | None = None) -> Exporter:
    """The exporter of a name, which the suffix of another format must not contradict, or else of the file's suffix.

    Raises:
        CamkitError: there is none, or the file's suffix is another format's.
    """
    exporters: dict[str, Exporter] = {one.name: one for one in registry().values("exporter")}
    by_suffix = {one.suffix: one for one in exporters.values()}
    suffix = suffix_of(path, by_suffix)
    if name is not None and name not in exporters:
        raise unknown("export format", name, exporters)
    if name is not None:
        if suffix not in (None, exporters[name].suffix):
            raise CamkitError(
                f"'{path.name}' ends in {suffix}, but a file of the format '{name}' ends in {exporters[name].suffix}."
            )
        return exporters[name]
    if suffix is None:
        raise unknown("export format", path.suffix or path.name, by_suffix)
    return by_suffix[suffix]


def request(
    explainer: Explainer,
    method: AnyMethod | Sequence[AnyMethod] = "gradcam",
    *,
    layer: str | Sequence[str] | None = None,
    target: str | Target = "class",
    options: Mapping[str, Any] | None = None,
    relu: bool = True,
    images: Tensor | None = None,
    top_k: int | None = None,
    frame_size: Size | None = None,
    raw: bool = False,
    half: bool = False,
    dynamic_size: bool = False,
) -> ExportRequest:
    """The request for an export, after one eager run that finds out whether the methods suit the model."""
    if explainer.device.type != "cpu" or explainer.dtype != torch.float32:
        raise CamkitError(
            f"The model is {explainer.dtype} on {explainer.device}, but a graph is made from float32 on the CPU and "
            f"then runs anywhere; load the model that way for the export."
        )
    example = _example(explainer, images)
    methods: list[AnyMethod] = [method] if isinstance(method, str) or callable(method) else list(method)
    given = layer if layer is not None else explainer.layer
    layers: list[str | None] = [given] if given is None or isinstance(given, str) else list(given)
    if not methods or not layers:
        raise CamkitError("Nothing is to be exported: name a method, and a layer or none for the adapter's.")
    target = Target(target) if isinstance(target, str) else target
    plan = explainer.plan(example, methods, layers, options, others=[target.name])
    for one in plan.methods:
        if one.kind != "map":
            raise CamkitError(f"The method '{one.name}' gives {one.kind}, not a map, and cannot be exported.")
    refuse_untraceable(plan)
    if not isinstance(target.function, str):
        raise CamkitError("An export's target is a registered function; a plugin can add one with @camkit.target.")
    function = registry().get("target", target.function)
    inputs = _inputs(function, target)
    forward = plan.forward(example)
    own = own_options(options or {}, target.name, plan.names, [target.name])
    question = replace(target, class_index=Rank(0), inputs=inputs).question(forward, own, explainer.probability)
    positions = [place for place, _ in plan.results(forward, plan.score(forward, question, last=True))]
    classes = forward.features.shape[1]
    _check_top_k(top_k, classes, "class_index" in function.inputs and forward.reader.classes)
    frames = _frames(explainer, frame_size, example)
    if frames and dynamic_size:
        raise CamkitError("Pictures that the graph preprocesses have one size; leave out their size or --dynamic-size.")
    whole = ExportRequest(
        explain=_of_frames(
            traceable(plan, function, question.options, question.probability, top_k, list(inputs)), frames
        ),
        oracle=_no_oracle,
        image_shape=(*frame_size, 3) if frame_size else (example.shape[1], example.shape[2], example.shape[3]),
        classes=classes,
        relu=relu,
        provenance={
            "model": explainer.spec or type(explainer.module).__name__,
            "weights": explainer.weights,
            "output": "logits" if forward.reader.classes else "embedding",
            "target": target.function,
            "target_options": dict(question.options),
            "adapter": plan.adapter.name,
            "probability": explainer.probability,
            "class_names": list(explainer.class_names) if explainer.class_names else None,
            "preprocessing": explainer.preprocessing.model_dump(mode="json") if explainer.preprocessing else None,
            "versions": {
                name: _version(name) for name in ("camkit", "torch", "torchvision", "timm", "onnx", "onnxscript")
            },
        },
        top_k=top_k,
        frames=frames,
        raw=raw,
        half=half,
        dynamic_size=dynamic_size,
        inputs=inputs,
    )
    # one copy for all oracles, and none before the first of them is asked
    twin = functools.cache(functools.partial(in_double, explainer))
    singles = [_part(twin, whole, example, methods[m], plan, (m, n), layers[n], options) for m, n in positions]
    if len(singles) == 1:
        singles = [replace(singles[0], name="")]
    if len(singles) == 1 and top_k is None:
        return singles[0]
    parts = [
        part if rank is None else replace(part, rank=rank)
        for part in singles
        for rank in ([None] if top_k is None else range(top_k))
    ]
    return replace(
        whole,
        parts=tuple(parts),
        provenance={
            **whole.provenance,
            "maps": [{name: single.provenance[name] for name in MAP_FACTS} for single in singles],
        },
    )


def _part(
    twin: Callable[[], Explainer],
    whole: ExportRequest,
    example: Tensor,
    method: AnyMethod,
    plan: Plan,
    position: tuple[int, int],
    layer: str | None,
    options: Mapping[str, Any] | None,
) -> ExportRequest:
    """One method at one layer of a plan, as a request of its own."""
    m, n = position
    target = whole.provenance["target"]
    own = {name: value for name, value in (options or {}).items() if name.partition(".")[0] not in _others(plan, m)}
    function = registry().get("target", target)
    alone = replace(
        plan, methods=[plan.methods[m]], names=[plan.names[m]], layers=[plan.layers[n]], options=[plan.options[m]]
    )
    frames = whole.frames

    @functools.cache
    def oracle() -> Oracle:
        # what the head gives alone was compared with the whole model when the methods were planned
        return Oracle(twin(), example, method, layer, Target(target, inputs=whole.inputs), own, plain=False)

    def reference(
        images: Tensor, class_index: Tensor, inputs: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        found = oracle()(images if frames is None else frames.images(images, torch.float64), class_index, inputs)
        return found.logits, found.maps

    path = plan.layers[n].path if plan.methods[m].has_layer else None
    facts = {
        "method": plan.names[m],
        "class_specific": plan.methods[m].class_specific and "class_index" in function.inputs,
        "options": dict(plan.options[m]),
        "layer": path,
    }
    return replace(
        whole,
        name="__".join(part for part in (plan.names[m], path) if part),
        explain=_of_frames(
            traceable(
                alone,
                function,
                whole.provenance["target_options"],
                whole.provenance["probability"],
                inputs=list(whole.inputs),
            ),
            frames,
        ),
        oracle=reference,
        provenance={**whole.provenance, **facts},
        top_k=None,
    )


def _others(plan: Plan, m: int) -> set[str]:
    return {name for name in plan.names if name != plan.names[m]}


def _no_oracle(images: Tensor, class_index: Tensor, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    raise CamkitError("A graph of several maps has one oracle for each of its parts.")


def _inputs(function: TargetFunction, target: Target) -> dict[str, Tensor]:
    """One image's example of each input that the target needs beside the class, in its order."""
    names = [name for name in function.inputs if name != "class_index"]
    missing = [name for name in names if name not in target.inputs]
    if missing:
        raise CamkitError(
            f"The target '{function.name}' needs '{missing[0]}', which becomes an input of the graph; give an example, "
            "[1, ...], that shows its shape and type."
        )
    given = {**{name: target.inputs[name] for name in names}, **target.inputs}
    return {
        name: (value.float() if value.is_floating_point() else value)[:1].detach().cpu()
        for name, value in given.items()
    }


def _of_frames(explain: Explain, frames: Frames | None) -> Explain:
    if frames is None:
        return explain

    def explain_frames(pictures: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        return explain(frames.images(pictures, torch.float32), *rest)

    return explain_frames


def _frames(explainer: Explainer, size: Size | None, example: Tensor) -> Frames | None:
    if size is None:
        return None
    preprocessing = require_preprocessing(explainer)
    if preprocessing.size != (example.shape[2], example.shape[3]):
        raise CamkitError(
            f"The images given are {example.shape[2]}x{example.shape[3]}, but the preprocessing makes "
            f"{preprocessing.size[0]}x{preprocessing.size[1]}; leave one of the two out."
        )
    return Frames(preprocessing, (int(size[0]), int(size[1])))


def require_preprocessing(explainer: Explainer) -> Preprocessing:
    """The model's preprocessing, for a graph that holds it; a CamkitError where it is not known."""
    if explainer.preprocessing is None:
        raise CamkitError("The model's preprocessing is not known, so that it cannot be written into the graph.")
    return explainer.preprocessing


def _check_top_k(top_k: int | None, classes: int, of_classes: bool) -> None:
    if top_k is None:
        return
    if not of_classes:
        raise CamkitError("The top classes can be explained only of a target that is a class's.")
    if not 1 <= top_k <= classes:
        raise CamkitError(f"The top {top_k} classes cannot be explained: the model has {classes}, and 1 is the fewest.")


def _example(explainer: Explainer, images: Tensor | None) -> Tensor:
    if images is not None:
        return images
    if explainer.preprocessing is None:
        raise CamkitError(
            "The size of the model's input is not known; give images=... of the size that is to be served."
        )
    channels = len(explainer.preprocessing.mean)
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(2, channels, *explainer.preprocessing.size, generator=generator)
    return example.to(explainer.device, explainer.dtype)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
