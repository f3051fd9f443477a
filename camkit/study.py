"""A study: methods on models over a data set, judged by several metrics, of true, likeliest and least likely classes.

`camkit.study_run` does it.
"""

import json
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from camkit import datasets
from camkit.atomic import write_bytes
from camkit.datasets import Pictures
from camkit.errors import CamkitError, unknown
from camkit.evaluate import Box, Evaluation, Sample
from camkit.explain import Explainer
from camkit.journal import Journal
from camkit.registry import registry

Target = Literal["true", "top", "last"]

PRESETS = "camkit.presets"
# what may grow from one run to the next; everything else gives other values
_MAY_DIFFER = {"models", "methods", "fewer"}


class Study(BaseModel):
    """What is measured on what.

    Attributes:
        models: SPECs, as for `camkit.load_model`.
        methods, metrics: names.
        data: ``name`` or ``name:PATH``; see `camkit.datasets.find`.
        data_options: the data set's options.
        images: how many pictures are taken; None takes as many as the data set gives.
        targets: which classes of a picture are explained: its ``true`` one, ``top``, what the model predicts, and
            ``last``, the least likely.
        layer, options, metric_options, seed: as for an `Evaluation`.
        fewer: methods that are shown the first pictures only, and how many.
        batch_size: pictures in one pass.
        loading: what else the models were loaded with; kept, not read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[str, ...]
    methods: tuple[str, ...]
    metrics: tuple[str, ...]
    data: str
    data_options: dict[str, Any] = {}
    images: PositiveInt | None = None
    targets: tuple[Target, ...] = ("true",)
    layer: str | None = None
    options: dict[str, Any] = {}
    metric_options: dict[str, Any] = {}
    fewer: dict[str, PositiveInt] = {}
    seed: NonNegativeInt = 0
    batch_size: PositiveInt = 32
    loading: dict[str, Any] = {}

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Study":
        """A study from settings as a preset or a command line gives them.

        Raises:
            CamkitError: a setting is unknown, missing or wrong.
        """
        for name in ("models", "methods", "metrics", "targets"):
            if not settings.get(name, True):
                raise CamkitError(f"A study needs at least one of its {name}.")
        try:
            return cls(**settings)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            if first["type"] == "missing":
                raise CamkitError(f"Say which {place} are to be evaluated: --{place}, or a --preset.") from None
            raise CamkitError(f"The study's setting '{place}' is wrong: {first['msg'].lower()}.") from None


@dataclass
class Studied:
    """One model of a study, when all of its lines are there.

    Attributes:
        explainer: the model.
        methods: those that it does not refuse.
        refused: why it refuses the others, one sentence each.
        pictures: the data set as this model takes it.
        problems: what of the data set could not be read.
    """

    spec: str
    explainer: Explainer = field(repr=False)
    methods: list[str]
    refused: dict[str, str]
    pictures: Pictures = field(repr=False)
    problems: list[str]


def read_preset(name: str) -> dict[str, Any]:
    """The settings of a preset: the TOML file of that path, or one that a plugin lists in ``camkit.presets``.

    Raises:
        CamkitError: there is none, or it is not TOML.
    """
    listed = {entry.name: entry for entry in entry_points(group=PRESETS)}
    path = Path(name)
    if name in listed:
        path = Path(listed[name].load())
    elif not path.is_file():
        raise unknown("preset", name, listed)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CamkitError(f"The preset '{path}' cannot be read: {error}.") from None


def expand(methods: Sequence[str], without: Sequence[str] = ()) -> list[str]:
    """The names, in which ``all`` stands for every other method that gives a map, less those left out.

    Raises:
        CamkitError: a method is not known.
    """
    known = registry()
    named = [name for name in methods if name != "all"]
    maps = [method.name for method in known.values("method") if method.kind == "map"] if "all" in methods else []
    for name in (*named, *without):
        known.get("method", name)
    return [name for name in dict.fromkeys([*named, *sorted(maps)]) if name not in without]


def begin(study: Study, folder: Path) -> Journal:
    """The journal of a study in its folder: a new one, or the one that is to be gone on with.

    Raises:
        CamkitError: the folder holds another study, or cannot be written.
    """
    path = folder / "study.json"
    settings = study.model_dump(mode="json")
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            differs = [key for key in settings if key not in _MAY_DIFFER and before.get(key) != settings[key]]
        except (OSError, ValueError, AttributeError) as error:
            raise CamkitError(f"'{path}' cannot be read: {error}.") from None
        if differs:
            key = differs[0]
            raise CamkitError(
                f"The folder '{folder}' holds a study with another '{key}' ({before.get(key)!r}, now "
                f"{settings[key]!r}); choose another --output."
            )
    journal = Journal(folder / "results.jsonl")
    write_bytes(path, (json.dumps(settings, indent=1, ensure_ascii=False) + "\n").encode())
    return journal


def pictures(study: Study) -> int:
    """How many pictures a model is shown, as far as that is known beforehand: what a progress bar needs."""
    samples = data_of(study)
    if study.images is not None:
        return study.images
    try:
        found = samples()
    # class names may be needed, that only a model has
    except CamkitError:
        return 0
    return len(found) if isinstance(found, datasets.Samples) else 0


def evaluation(study: Study, explainer: Explainer, methods: Sequence[str]) -> Evaluation:
    """What measures these methods as the study says."""
    return Evaluation(
        explainer,
        list(study.metrics),
        list(methods),
        layer=study.layer,
        options=options_of(study, methods),
        metric_options=study.metric_options,
        seed=study.seed,
    )


def options_of(study: Study, methods: Sequence[str]) -> dict[str, Any]:
    """The options of these methods among those of the study."""
    return {key: value for key, value in study.options.items() if key.rpartition(".")[0] in methods}


def boxes_of(sample: Sample, class_index: int) -> tuple[Box, ...]:
    """The boxes of one class; those of the asked class where the picture is not known to show the other."""
    return tuple(box for index, box in sample.objects if index == class_index) or sample.boxes


def asked_for(sample: Sample, class_index: int) -> Sample:
    """The sample with another class to be explained."""
    return replace(sample, class_index=class_index, boxes=boxes_of(sample, class_index))


def data_of(study: Study, explainer: Explainer | None = None) -> Callable[[], Iterable[Sample]]:
    """What gives the study's data set from its beginning, for a model's classes where they are known."""
    offered = {"count": study.images, "seed": study.seed, "class_names": explainer.class_names if explainer else None}
    data, options = datasets.find(study.data, study.data_options, offered)
    return partial(data.samples, options)
