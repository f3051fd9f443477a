"""Runs exported files on numpy arrays. `OnnxSession` needs numpy and onnxruntime, and nothing else."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camkit.errors import CamkitError, first_line, unknown
from camkit_export import onnx_file

METADATA_KEY = "camkit"
# In formats that are archives, the file that holds it.
METADATA_FILE = "camkit.json"
METADATA_FORMAT = 3

# Of a graph of one map, what it takes and gives, in this order. With the top classes explained there is no class_index.
INPUTS = ("image", "class_index")
OUTPUTS = ("logits", "heatmap", "map", "explained_class")

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Pixels = NDArray[np.uint8]


def output_names(maps: Sequence[str], *, raw: bool = False) -> tuple[str, ...]:
    """What a graph gives, in order; `maps` are the names of its maps, ``METHOD__LAYER``, or one empty name.

    ``logits``; of each map ``heatmap__METHOD__LAYER`` and ``map__METHOD__LAYER``, or just ``heatmap`` and ``map``;
    ``explained_class``. A raw graph gives no heatmaps.
    """
    kinds = ("map",) if raw else ("heatmap", "map")
    return ("logits", *(output_name(kind, name) for name in maps for kind in kinds), "explained_class")


def output_name(kind: str, name: str) -> str:
    """What one map's output of a kind, ``heatmap`` or ``map``, is called."""
    return f"{kind}__{name}" if name else kind


@dataclass(frozen=True)
class Result:
    """What a session answers of one map. Of a file that explains the top k classes, [B, …] below is [B, k, …].

    Attributes:
        logits: [B, classes].
        heatmaps: [B, H, W] at the size of the images, in [0, 1]; in [-1, 1] for a file exported without ReLU. Empty for
            a raw file.
        maps: [B, h, w], low resolution and signed.
        classes: [B], the class that was explained.
        name: of one map among several, ``METHOD__LAYER``.
    """

    logits: Floats
    heatmaps: Floats
    maps: Floats
    classes: Integers
    name: str = ""


class Session(ABC):
    """An exported file, ready to explain images.

    Attributes:
        path: the file.
        provenance: what was exported: model, method, options, layer, class names, preprocessing, versions.
        image_shape: of one image: (C, H, W); of pictures that the file preprocesses itself, (H, W, 3).
        dynamic_size: whether images may have another height and width.
        image_type: the numpy type of images: float32, or uint8 for pictures.
        classes: the number of classes.
        class_names: their names, or None where the file has none.
        relu: whether heatmaps show the positive part of the map only.
        raw: whether there are no heatmaps.
        half: whether its weights are kept in float16.
        top_k: how many classes are explained of each image; None where the class is an input.
        maps: the names of the maps, ``METHOD__LAYER``; one empty name where there is one map.
        further: by name, shape of one image's and numpy type of what the target needs beside the class.
        inputs, outputs: the names of the graph's inputs and outputs, in order.
        input_types: by name, the numpy type of each input.
        vectors: the test vectors of the file, one entry for each map and rank (see `camkit_export.vectors`).
        runtime: what runs it, and which version: ``onnxruntime 1.31.1``; empty where an engine does not say.
        providers: what of the runtime really does, best first. ONNX Runtime lists TensorRT and CUDA even where their
            libraries are missing and goes on without them; these are the ones that it could start.
    """

    runtime: str = ""
    providers: tuple[str, ...] = ()

    def __init__(self, path: str | Path, metadata: str | None) -> None:
        self.path = Path(path)
        if metadata is None:
            raise CamkitError(f"{self.path} was not exported by camkit: it has no camkit metadata.")
        try:
            facts: dict[str, Any] = json.loads(metadata)
            if facts["format"] != METADATA_FORMAT:
                raise CamkitError(
                    f"{self.path} has camkit metadata of format {facts['format']}; this camkit reads {METADATA_FORMAT}."
                )
            self.provenance: Mapping[str, Any] = facts["provenance"]
            first, second, third = facts["image_shape"]
            self.image_shape: tuple[int, int, int] = (int(first), int(second), int(third))
            self.image_type = {"float32": np.float32, "uint8": np.uint8}[facts["image_type"]]
            self.classes = int(facts["classes"])
            self.relu, self.raw, self.half = bool(facts["relu"]), bool(facts["raw"]), bool(facts["half"])
            self.dynamic_size = bool(facts["dynamic_size"])
            self.top_k = None if facts["top_k"] is None else int(facts["top_k"])
            self.maps: tuple[str, ...] = tuple(str(name) for name in facts["maps"])
            self.vectors: Sequence[Mapping[str, Any]] = facts["vectors"]
            self.further: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
                str(one["name"]): (tuple(map(int, one["shape"])), np.dtype(one["type"])) for one in facts["further"]
            }
            names = self.provenance.get("class_names")
            self.class_names: tuple[str, ...] | None = tuple(names) if names else None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CamkitError(f"The camkit metadata of {self.path} is damaged: {error!r}.") from error
        self.input_types: Mapping[str, np.dtype[Any]] = {
            INPUTS[0]: np.dtype(self.image_type),
            **({INPUTS[1]: np.dtype(np.int64)} if self.top_k is None else {}),
            **{name: kind for name, (_, kind) in self.further.items()},
        }
        self.inputs = tuple(self.input_types)
        self.outputs = output_names(self.maps, raw=self.raw)

    @property
    def takes_pictures(self) -> bool:
        """Whether images are pictures that the file preprocesses itself."""
        return self.image_type is np.uint8

    @property
    def map_facts(self) -> Sequence[Mapping[str, Any]]:
        """What the provenance tells of each map, in the order of `maps`: method, layer, options."""
        facts: Sequence[Mapping[str, Any]] = self.provenance.get("maps", [self.provenance])
        return facts

    @property
    def provider(self) -> str:
        """The first of `providers`, which runs whatever of the graph it can; empty where an engine does not say."""
        return self.providers[0] if self.providers else ""

    def open_shape(self, name: str, array: NDArray[Any]) -> tuple[int, ...]:
        """The shape of an input or output without its batch, -1 for a height and width that are open."""
        shape = array.shape[1:]
        sized = name == INPUTS[0] or name.partition("__")[0] in ("heatmap", "map")
        return (*shape[:-2], -1, -1) if self.dynamic_size and sized else shape

    def blank(self) -> Floats | Pixels:
        """One image of zeros, [1, ...], as the file takes it."""
        return np.zeros((1, *self.image_shape), self.image_type)

    def example(self) -> tuple[NDArray[Any], ...]:
        """All inputs for one image, of zeros, and the top class."""
        return self.checked(
            self.blank(), None, **{name: np.zeros((1, *shape), kind) for name, (shape, kind) in self.further.items()}
        )

    def __call__(
        self,
        images: Floats | Pixels,
        classes: int | Sequence[int] | NDArray[np.integer[Any]] | None = None,
        **further: NDArray[Any],
    ) -> Result:
        """Explains images: preprocessed, float32 [B, C, H, W]; or pictures, uint8 [B, H, W, 3], as the file takes them.

        `classes` is one class index for all images or one for each; None or a negative index: the top class. `further`
        holds by name what else the file's target needs, [B, ...] each or [1, ...] for all images.

        Raises:
            CamkitError: the images or another input have another shape or type, a class index is too large or may not
                be given, an input is missing, or the file has several maps.
        """
        if len(self.maps) != 1:
            raise CamkitError(
                f"The file {self.path} has {len(self.maps)} maps ({', '.join(self.maps)}); "
                f"call results(...) for all of them."
            )
        return self.results(images, classes, **further)[0]

    def results(
        self,
        images: Floats | Pixels,
        classes: int | Sequence[int] | NDArray[np.integer[Any]] | None = None,
        **further: NDArray[Any],
    ) -> list[Result]:
        """A result for each map of the file, in the order of `maps`; arguments and errors as for a call."""
        found = self.tensors(images, classes, **further)
        none = np.zeros(0, np.float32)
        return [
            Result(
                found["logits"],
                found.get(output_name("heatmap", name), none),
                found[output_name("map", name)],
                found["explained_class"],
                name,
            )
            for name in self.maps
        ]

    def tensors(
        self,
        images: Floats | Pixels,
        classes: int | Sequence[int] | NDArray[np.integer[Any]] | None = None,
        **further: NDArray[Any],
    ) -> dict[str, NDArray[Any]]:
        """The graph's outputs by their names, in their order; arguments and errors as for a call."""
        return self.run(*self.checked(images, classes, **further))

    def run(self, *inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """The graph's outputs by their names, of inputs that were checked, in their order."""
        try:
            return dict(zip(self.outputs, self._run(*inputs), strict=True))
        except Exception as error:  # engines raise what they like
            reason = first_line(error)[:300]
            if not self.dynamic_size:
                raise CamkitError(
                    f"The graph of {self.path.name} fails in {self.runtime}: {reason.rstrip('.')}."
                ) from error
            height, width = inputs[0].shape[2:]
            raise CamkitError(f"The model of {self.path} does not take images of {height}x{width}: {reason}") from error

    def checked(
        self,
        images: Floats | Pixels,
        classes: int | Sequence[int] | NDArray[np.integer[Any]] | None = None,
        **further: NDArray[Any],
    ) -> tuple[NDArray[Any], ...]:
        """The inputs as the graph takes them, in their order; arguments and errors as for a call."""
        images = self._checked_images(images)
        if self.top_k is not None and classes is not None:
            raise CamkitError(f"The file {self.path} explains the top {self.top_k} classes; no class can be asked for.")
        asked = () if self.top_k is not None else (self._checked_classes(classes, len(images)),)
        for name in further:
            if name not in self.further:
                raise unknown("input", name, self.inputs)
        return images, *asked, *(self._checked_further(name, further.get(name), len(images)) for name in self.further)

    @abstractmethod
    def _run(self, *inputs: NDArray[Any]) -> Sequence[NDArray[Any]]:
        """The outputs of the graph for its inputs, both in the order of their names."""

    def _checked_images(self, images: NDArray[Any]) -> NDArray[Any]:
        if not isinstance(images, np.ndarray):
            raise CamkitError(f"Images must be a numpy array, not {type(images).__name__}.")
        if images.dtype != self.image_type:
            kind = "pictures of whole levels, uint8" if self.takes_pictures else "preprocessed and float32"
            raise CamkitError(f"Images must be {kind}, not {images.dtype}.")
        fixed = 2 if self.dynamic_size else 4
        if images.ndim != 4 or images.shape[1:fixed] != self.image_shape[: fixed - 1] or 0 in images.shape:
            open_sizes = ("height", "width") if self.dynamic_size else ()
            wanted = ", ".join(map(str, (*self.image_shape[: fixed - 1], *open_sizes)))
            raise CamkitError(f"Images must have the shape [batch, {wanted}], not {list(images.shape)}.")
        return np.ascontiguousarray(images)

    def _checked_further(self, name: str, given: NDArray[Any] | None, images: int) -> NDArray[Any]:
        shape, kind = self.further[name]
        wanted = f"a numpy array of {kind} and shape [{', '.join(map(str, ('batch', *shape)))}]"
        if given is None:
            raise CamkitError(f"The input '{name}' is missing; {wanted} is expected.")
        given = np.asarray(given)
        if given.dtype.kind != kind.kind or given.shape[1:] != shape or given.shape[:1] not in ((1,), (images,)):
            raise CamkitError(
                f"The input '{name}' is {given.dtype} of shape {list(given.shape)}; {wanted} is expected."
            )
        if kind.kind == "i":
            wrong = given[(given < 0) | (given >= self.classes)]
            if wrong.size:
                raise CamkitError(f"The input '{name}' holds classes, from 0 to {self.classes - 1}, not {wrong[0]}.")
        return np.broadcast_to(given.astype(kind), (images, *shape)).copy()

    def _checked_classes(self, classes: int | Sequence[int] | NDArray[np.integer[Any]] | None, images: int) -> Integers:
        given = np.asarray(-1 if classes is None else classes)
        if given.dtype.kind not in "iu":
            raise CamkitError(f"Classes must be integers, not {given.dtype}.")
        if given.ndim == 0:
            given = np.full(images, given)
        if given.shape != (images,):
            raise CamkitError(f"There must be one class for each of the {images} images, not {list(given.shape)}.")
        if given.max() >= self.classes:
            raise CamkitError(
                f"There is no class {given.max()}: the model has {self.classes}, counted from 0; a negative number "
                "means the top class."
            )
        return given.astype(np.int64)


class OnnxSession(Session):
    """An exported ``.onnx`` file in ONNX Runtime.

    `providers` are those of ONNX Runtime that are wished for, best first; the attribute has those that it could start.

    Raises:
        CamkitError: there is no such file, it is damaged or not camkit's, or it would load more than its own graph.
    """

    def __init__(self, path: str | Path, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        import onnxruntime

        data = read_bytes(path)
        try:
            contents = onnx_file.read(data)
        except CamkitError as error:
            raise CamkitError(f"{path} cannot be read: {error}") from error
        super().__init__(path, contents.metadata.get(METADATA_KEY))
        custom = sorted(contents.domains - {"", "ai.onnx"})
        if custom:
            raise CamkitError(f"{path} is refused: it uses operators of the domain '{custom[0]}', not of ONNX itself.")
        if contents.external_data:
            raise CamkitError(f"{path} is refused: it reads its weights from other files.")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; they come as exceptions too
        try:
            self._engine = onnxruntime.InferenceSession(data, options, providers=list(providers))
        except Exception as error:  # its exception classes are private
            raise CamkitError(f"ONNX Runtime cannot load {path}: {first_line(error)}") from error
        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        self.providers = tuple(self._engine.get_providers())

    def _run(self, *inputs: NDArray[Any]) -> Sequence[NDArray[Any]]:
        found: list[NDArray[Any]] = self._engine.run(list(self.outputs), dict(zip(self.inputs, inputs, strict=True)))
        return found


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a file; a CamkitError where there is none."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CamkitError(f"{path} cannot be read: {error.strerror or error}.") from error
