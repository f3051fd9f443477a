"""Images in, explanations out: the file's own preprocessing before the session, overlays and JSON behind it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from camkit import visualize
from camkit.errors import CamkitError, unknown
from camkit.explanation import Explanation
from camkit.exports import heatmaps_of
from camkit.frames import Frames
from camkit.images import decode_image
from camkit.preprocessing import Preprocessing
from camkit.targets import Rank, Target, class_label, parse_targets
from camkit_export.serve.batcher import Inputs, Outputs
from camkit_export.serve.protocol import json_values
from camkit_export.serve.refusals import Refused
from camkit_export.session import Session, output_name

# how many of an image's classes the JSON names
TOP = 5
# of a class; a number of more digits than Python reads is an error of another kind
_LONGEST_NAME = 1000


@dataclass(frozen=True)
class Prepared:
    """An image as the graph takes it, [1, ...], and as it is drawn on, uint8 [H, W, 3]."""

    tensor: NDArray[Any]
    picture: NDArray[np.uint8]


@dataclass(frozen=True)
class Question:
    """What is asked of an image: the class, as it was named and by its number (-1: the top class), and the map."""

    asked: str
    class_index: int
    map_name: str


@dataclass(frozen=True)
class Served(Explanation):
    """An explanation whose heatmaps the graph gave: `given` is [B, H, W]."""

    given: Tensor | None = None

    @cached_property
    def heatmaps(self) -> Tensor:
        """See `Explanation.heatmaps`."""
        assert self.given is not None  # noqa: S101 - a dataclass whose base has defaults cannot ask for it
        return self.given


class Pictures:
    """What a session takes images for.

    Args:
        session: the exported file.
        most_pixels: images of more pixels are refused before they are decoded.

    Raises:
        CamkitError: the preprocessing in the file's metadata is damaged.
    """

    def __init__(self, session: Session, most_pixels: int) -> None:
        self._session = session
        self._most_pixels = most_pixels
        facts = session.provenance.get("preprocessing")
        try:
            self._preprocessing = None if facts is None else Preprocessing.model_validate(facts)
        except ValidationError as error:
            raise CamkitError(f"The preprocessing in {session.path} is damaged: {error.errors()[0]['msg']}.") from None
        self._embedding = session.provenance.get("output", "logits") != "logits"
        # pictures of one size, which the graph preprocesses itself
        self._whole = session.takes_pictures
        shape = session.image_shape
        self._size = (shape[0], shape[1]) if self._whole else (shape[1], shape[2])

    def question(self, asked: str, map_name: str | None) -> Question:
        """What a client asks of an image; `map_name` None is the file's first map.

        Raises:
            CamkitError: the file has no such class or map, or does not say how images are prepared.
        """
        self._required()
        names = self._session.maps
        if map_name is not None and map_name not in names:
            raise unknown("map", map_name, [name for name in names if name], "the file has one map without a name.")
        return Question(asked, self._class_index(asked), names[0] if map_name is None else map_name)

    def read(self, content: bytes, name: str) -> Prepared:
        """An image file, prepared.

        Raises:
            CamkitError: it is no image, is damaged, has too many pixels, or is of another size than the graph takes.
        """
        preprocessing = self._required()
        image = decode_image(content, name, most_pixels=self._most_pixels)
        if not self._whole:
            picture = np.asarray(preprocessing.view(image))
            return Prepared(preprocessing(image).unsqueeze(0).numpy(), visualize.enlarged(picture))
        height, width = self._size
        if image.size != (width, height):
            raise Refused(
                f"The exported file takes pictures of {width}x{height} pixels, but '{name}' has "
                f"{image.width}x{image.height}."
            )
        picture = np.asarray(image)
        return Prepared(picture[None], visualize.enlarged(picture))

    def inputs(self, prepared: Prepared, question: Question) -> Inputs:
        """What the session takes for one image."""
        classes = question.class_index if self._session.top_k is None else None
        return self._session.checked(prepared.tensor, classes)

    def explanation(self, outputs: Outputs, question: Question) -> Explanation:
        """A session's outputs for one image as the explanation that they are.

        Raises:
            CamkitError: the file explains the top classes of an image, and the class is not among them.
        """
        session, name = self._session, question.map_name
        place = slice(0, 1) if session.top_k is None else (slice(0, 1), self._rank(outputs, question))
        logits, maps = (torch.from_numpy(one) for one in (outputs["logits"], outputs[output_name("map", name)][place]))
        classes = torch.from_numpy(outputs["explained_class"][place])
        shared, own = session.provenance, session.map_facts[session.maps.index(name)]
        # the score of other targets is not among the graph's outputs
        scores = (
            logits.gather(1, classes[:, None])[:, 0] if shared["target"] == "class" else torch.full((1,), torch.nan)
        )
        return Served(
            maps=maps,
            logits=logits[:, :0] if self._embedding else logits,
            targets=classes,
            scores=scores,
            method=own["method"],
            options=own["options"],
            layer=own["layer"],
            target=Target(shared["target"], label=question.asked),
            size=self._size,
            relu=session.relu,
            class_names=session.class_names,
            probability=shared["probability"],
            target_options=shared.get("target_options") or {},
            given=self._made(maps) if session.raw else torch.from_numpy(outputs[output_name("heatmap", name)][place]),
        )

    def record(self, explanation: Explanation) -> dict[str, Any]:
        """One image's result as JSON values: what ``camkit explain`` writes, the top classes, and the map [h, w]."""
        record = explanation.record(0)
        chances = explanation.probabilities[0]
        best = chances.argsort(descending=True, stable=True)[:TOP].tolist()
        top = [
            {
                "class": index,
                "name": class_label(index, explanation.class_names),
                "probability": json_values(chances[index].numpy()),
            }
            for index in best
        ]
        return {**record, "top": top, "map": {**record["map"], "values": json_values(explanation.maps[0].numpy())}}

    def png(self, explanation: Explanation, picture: NDArray[np.uint8], colormap: str | None, alpha: float) -> bytes:
        """The heatmap over the picture, as a PNG file."""
        return visualize.png_bytes(explanation.draw(0, picture, colormap=colormap, alpha=alpha))

    def _required(self) -> Preprocessing:
        """How images are prepared; refuses them where the file does not say so."""
        if self._preprocessing is None:
            raise Refused("The exported file holds no preprocessing; send tensors instead.")
        made = (self._preprocessing.channels, *self._preprocessing.size)
        # an export for another size of image keeps the model's own preprocessing
        if not self._whole and made != self._session.image_shape:
            raise Refused(
                f"The exported file takes images of {list(self._session.image_shape)}, but its preprocessing makes "
                f"{list(made)}; send tensors instead."
            )
        return self._preprocessing

    def _class_index(self, asked: str) -> int:
        """The class that a text names: its number, its name, or ``top``, which is -1."""
        if len(asked) > _LONGEST_NAME:
            raise Refused(f"The class has {len(asked)} letters; {_LONGEST_NAME} are the most.")
        if self._embedding and asked != "top":
            raise Refused("The exported file explains an embedding, which has no classes.")
        targets, _ = parse_targets(asked, self._session.class_names, [])
        index = targets[0].class_index
        if isinstance(index, Rank) and index.place == 0 and len(targets) == 1:
            return -1
        if not isinstance(index, int):
            raise Refused(f"The class was '{asked}'; a class index, a class name or 'top' is expected.")
        if index >= self._session.classes:
            raise Refused(f"There is no class {asked}: the model has {self._session.classes}, counted from 0.")
        return max(-1, index)

    def _rank(self, outputs: Outputs, question: Question) -> int:
        """Which of the top classes that the file explains is asked for."""
        explained = outputs["explained_class"][0].tolist()
        if question.class_index >= 0 and question.class_index not in explained:
            names = ", ".join(class_label(index, self._session.class_names) for index in explained)
            raise Refused(f"The class '{question.asked}' is not among this image's top classes, which are {names}.")
        return explained.index(question.class_index) if question.class_index >= 0 else 0

    @cached_property
    def _frames(self) -> Frames | None:
        # its filters are large matrices, so it is made once
        return Frames(self._required(), self._size) if self._whole else None

    def _made(self, maps: Tensor) -> Tensor:
        """Heatmaps of maps, for a file that holds none."""
        return heatmaps_of(maps, (1, *self._session.image_shape), self._frames, relu=self._session.relu)
