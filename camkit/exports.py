"""Export of an explanation: what an exporter plugin is given, what it gives back, and how the file suffix finds it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from camkit import output, plugin
from camkit.check import Check
from camkit.errors import CamkitError, unknown
from camkit.explain import AnyMethod, Explainer
from camkit.injection import Signature, own_options, parse_signature
from camkit.plan import traceable
from camkit.registry import registry
from camkit.targets import Target
from camkit.testing.oracle import Oracle

if TYPE_CHECKING:
    from camkit.registry import Registry

Explain = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
Reference = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class ExportRequest:
    """One explanation, ready to be traced.

    Several formats can be written from one request, which is then traced once.

    Attributes:
        explain: ``(images [B, C, H, W], class_index [B] int64) -> (logits [B, classes], maps [B, h, w] signed,
            explained_class [B])``; a pure function of its arguments that calls `torch.autograd.grad` inside and can be
            traced with `make_fx`. A negative class index means the top class of that image.
        oracle: the same in float64 by plain hooks and full autograd, without a cut: ``-> (logits, maps)``.
        image_shape: (C, H, W).
        classes: the number of logits.
        relu: whether the heatmap keeps the positive part of the map only.
        provenance: what is written into the file: model, method, options, layer, class names, preprocessing, versions.
            It holds JSON values only and no path of this machine.
    """

    explain: Explain
    oracle: Reference
    image_shape: tuple[int, int, int]
    classes: int
    relu: bool
    provenance: Mapping[str, Any]


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

    @classmethod
    def parse(cls, function: Callable[..., ExportReport], mark: plugin.Mark, registry: "Registry") -> "Exporter":
        """Reads a marked function ``(request: ExportRequest, path: Path, *, options) -> ExportReport``."""
        known: dict[str, object] = {"request": ExportRequest, "path": Path}
        signature = parse_signature(function, f"the exporter '{mark.name}'", known)
        if signature.asks != ("request", "path"):
            raise CamkitError(f"The exporter '{mark.name}' must take 'request' and 'path', in this order.")
        return cls(mark.name, function, signature, mark.facts["suffix"])


def export(
    explainer: Explainer,
    path: str | Path,
    method: AnyMethod = "gradcam",
    *,
    layer: str | None = None,
    target: str = "class",
    options: Mapping[str, Any] | None = None,
    relu: bool = True,
    images: Tensor | None = None,
    **format_options: Any,
) -> ExportReport:
    """Writes an explanation as one graph that needs no autograd and no Python model, and verifies it first.

    Args:
        explainer: the model.
        path: the file; its suffix chooses the format (``.onnx``, ``.pt``).
        method: as for an Explainer; so are layer, options and relu.
        layer: see method.
        options: see method.
        relu: see method.
        target: name of a target function; the class is an input of the graph.
        images: example images [B, C, H, W] that show the input's size; by default the preprocessing's size.
        format_options: options of the format, such as ``opset``.

    Raises:
        CamkitError: the suffix is not known, the method cannot be traced, or the written graph does not agree with the
            float64 oracle. Then no file is left.
    """
    path = Path(path)
    exporters: list[Exporter] = registry().values("exporter")
    exporter = next((one for one in exporters if one.suffix == path.suffix), None)
    if exporter is None:
        raise unknown("export format", path.suffix or path.name, [one.suffix for one in exporters])
    chosen = exporter.signature.options(format_options)
    output.directory(path.parent)
    prepared = request(explainer, method, layer=layer, target=target, options=options, relu=relu, images=images)
    return exporter.function(prepared, path, **chosen)


def request(
    explainer: Explainer,
    method: AnyMethod = "gradcam",
    *,
    layer: str | None = None,
    target: str = "class",
    options: Mapping[str, Any] | None = None,
    relu: bool = True,
    images: Tensor | None = None,
) -> ExportRequest:
    """The request for an export, after one eager run that finds out whether the method suits the model."""
    if explainer.device.type != "cpu" or explainer.dtype != torch.float32:
        raise CamkitError(
            f"The model is {explainer.dtype} on {explainer.device}, but a graph is made from float32 on the CPU and "
            f"then runs anywhere; load the model that way for the export."
        )
    example = _example(explainer, images)
    layer = layer if layer is not None else explainer.layer if isinstance(explainer.layer, str) else None
    plan = explainer.plan(example, [method], [layer], options, others=[target])
    if plan.methods[0].kind != "map":
        raise CamkitError(
            f"The method '{plan.methods[0].name}' gives {plan.methods[0].kind}, not a map, and cannot be exported."
        )
    function = registry().get("target", target)
    if set(function.inputs) - {"class_index"}:
        raise CamkitError(
            f"The target '{target}' needs {', '.join(function.inputs)}; exported graphs take a class index only."
        )
    forward = plan.forward(example)
    own = own_options(options or {}, target, plan.names, [target])
    question = Target(target).question(forward, own, explainer.probability)
    list(plan.results(forward, plan.score(forward, question, last=True)))
    oracle = Oracle(explainer, example, method, layer, target, options)

    def reference(images: Tensor, class_index: Tensor) -> tuple[Tensor, Tensor]:
        found = oracle(images, class_index)
        return found.logits, found.maps

    return ExportRequest(
        explain=traceable(plan, function, question.options, question.probability),
        oracle=reference,
        image_shape=(example.shape[1], example.shape[2], example.shape[3]),
        classes=forward.features.shape[1],
        relu=relu,
        provenance={
            "model": explainer.spec or type(explainer.module).__name__,
            "weights": explainer.weights,
            "method": plan.names[0],
            "class_specific": plan.methods[0].class_specific and "class_index" in function.inputs,
            "output": "logits" if forward.reader.classes else "embedding",
            "options": dict(plan.options[0]),
            "target": target,
            "target_options": dict(question.options),
            "layer": plan.layers[0].path if plan.methods[0].has_layer else None,
            "adapter": plan.adapter.name,
            "probability": explainer.probability,
            "class_names": list(explainer.class_names) if explainer.class_names else None,
            "preprocessing": explainer.preprocessing.model_dump(mode="json") if explainer.preprocessing else None,
            "versions": {
                name: _version(name) for name in ("camkit", "torch", "torchvision", "timm", "onnx", "onnxscript")
            },
        },
    )


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
