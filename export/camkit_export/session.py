"""Runs exported files on numpy arrays. `OnnxSession` needs numpy and onnxruntime, and nothing else."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camkit.errors import CamkitError
from camkit_export import onnx_file

METADATA_KEY = "camkit"
METADATA_FORMAT = 1

# The order in which every exported graph takes its inputs and gives its outputs.
INPUTS = ("image", "class_index")
OUTPUTS = ("logits", "heatmap", "map", "explained_class")

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Result:
    """What a session answers.

    Attributes:
        logits: [B, classes].
        heatmaps: [B, H, W] at the size of the images, in [0, 1]; in [-1, 1] for a file exported without ReLU.
        maps: [B, h, w], low resolution and signed.
        classes: [B], the class that was explained.
    """

    logits: Floats
    heatmaps: Floats
    maps: Floats
    classes: Integers


class Session(ABC):
    """An exported file, ready to explain images.

    Attributes:
        path: the file.
        provenance: what was exported: model, method, options, layer, class names, preprocessing, versions.
        image_shape: (C, H, W).
        classes: the number of classes.
        class_names: their names, or None where the file has none.
        relu: whether heatmaps show the positive part of the map only.
        vectors: the test vectors of the file (see `camkit_export.verify`).
    """

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
            channels, height, width = facts["image_shape"]
            self.image_shape: tuple[int, int, int] = (int(channels), int(height), int(width))
            self.classes = int(facts["classes"])
            self.relu = bool(facts["relu"])
            self.vectors: Mapping[str, Any] = facts["vectors"]
            names = self.provenance.get("class_names")
            self.class_names: tuple[str, ...] | None = tuple(names) if names else None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CamkitError(f"The camkit metadata of {self.path} is damaged: {error!r}.") from error

    def __call__(self, images: Floats, classes: int | Sequence[int] | NDArray[np.integer[Any]] | None = None) -> Result:
        """Explains preprocessed images [B, C, H, W] in float32.

        `classes` is one class index for all images or one for each; None or a negative index: the top class.

        Raises:
            CamkitError: the images have another shape or type, or a class index is too large.
        """
        images = self._checked_images(images)
        logits, heatmaps, maps, explained = self._run(images, self._checked_classes(classes, len(images)))
        return Result(logits, heatmaps, maps, explained)

    @abstractmethod
    def _run(self, images: Floats, classes: Integers) -> tuple[Floats, Floats, Floats, Integers]:
        """The outputs of the graph: logits, heatmaps, maps, explained classes."""

    def _checked_images(self, images: Floats) -> Floats:
        if not isinstance(images, np.ndarray):
            raise CamkitError(f"Images must be a numpy array, not {type(images).__name__}.")
        if images.dtype != np.float32:
            raise CamkitError(f"Images must be preprocessed and float32, not {images.dtype}.")
        if images.ndim != 4 or images.shape[1:] != self.image_shape or len(images) == 0:
            wanted = ", ".join(str(size) for size in self.image_shape)
            raise CamkitError(f"Images must have the shape [batch, {wanted}], not {list(images.shape)}.")
        return np.ascontiguousarray(images)

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

    `providers` are those of ONNX Runtime, best first.

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
            raise CamkitError(f"ONNX Runtime cannot load {path}: {_first_line(error)}") from error

    def _run(self, images: Floats, classes: Integers) -> tuple[Floats, Floats, Floats, Integers]:
        logits, heatmaps, maps, explained = self._engine.run(
            list(OUTPUTS), dict(zip(INPUTS, (images, classes), strict=True))
        )
        return logits, heatmaps, maps, explained


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a file; a CamkitError where there is none."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CamkitError(f"{path} cannot be read: {error.strerror or error}.") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
