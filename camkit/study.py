"""A study: methods on models over a data set, judged by several metrics, of true, likeliest and least likely classes.

Each image, model and method is one JSON line, written as soon as it is known; what is there is not done again.
"""

import json
import tomllib
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import entry_points
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from camkit import datasets
from camkit.atomic import write_bytes
from camkit.errors import CamkitError, CamkitWarning, unknown
from camkit.evaluate import Box, Evaluation, Row, Sample
from camkit.explain import Explainer
from camkit.journal import Journal, Line
from camkit.metrics import as_metric
from camkit.pictures import as_images
from camkit.registry import registry
from camkit.targets import probabilities

Target = Literal["true", "top", "last"]
Key = tuple[str, str, str, int]

PRESETS = "camkit.presets"
# what may grow from one run to the next; everything else gives other values
_MAY_DIFFER = {"models", "methods", "fewer"}
# how many samples are looked at for boxes before anything is computed
_LOOK_AHEAD = 32


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
        batch_size: samples in one pass.
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
        samples: gives the data set as this model takes it, from its beginning.
        problems: what of the data set could not be read.
    """

    spec: str
    explainer: Explainer = field(repr=False)
    methods: list[str]
    refused: dict[str, str]
    samples: Callable[[], Iterable[Sample]] = field(repr=False)
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


def run(
    study: Study, load: Callable[[str], Explainer], journal: Journal, advance: Callable[[], None] = lambda: None
) -> Iterator[Studied]:
    """Does what the journal lacks, one model after the other, and gives each when its lines are complete.

    `load` builds an Explainer for a SPEC; `advance` is called after each picture.

    Raises:
        CamkitError: a name is not known, a metric needs what the data set lacks, no method fits a model, or a line
            cannot be written.
    """
    for name in study.methods:
        registry().get("method", name)
    for name in study.metrics:
        as_metric(name)
    done = {_key(line) for line in journal.lines}
    for spec in study.models:
        studied = _prepared(study, spec, load(spec))
        pass_over = _Pass(study, studied, journal, done)
        samples, counted = studied.samples(), ""
        for batch in _batches(_numbered(samples, study.images), study.batch_size):
            pass_over(batch)
            for _, sample in batch:
                if sample.name != counted:
                    advance()
                counted = sample.name
        if not pass_over.seen:
            raise CamkitError(f"The data set '{study.data}' has no samples, so there is nothing to measure.")
        studied.problems = list(getattr(samples, "problems", []))
        yield studied


def pictures(study: Study) -> int:
    """How many pictures a model is shown, as far as that is known beforehand: what a progress bar needs."""
    data, options = _data(study, None)
    if study.images is not None:
        return study.images
    try:
        return len(data.samples(options))
    # class names, that only a model has, may be needed; and data sets need not know their length
    except (CamkitError, TypeError):
        return 0


def evaluation(study: Study, explainer: Explainer, methods: Sequence[str]) -> Evaluation:
    """What measures these methods as the study says."""
    own = {key: value for key, value in study.options.items() if key.rpartition(".")[0] in methods}
    return Evaluation(
        explainer,
        list(study.metrics),
        list(methods),
        layer=study.layer,
        options=own,
        metric_options=study.metric_options,
        seed=study.seed,
    )


def boxes_of(sample: Sample, class_index: int) -> tuple[Box, ...]:
    """The boxes of one class; those of the asked class where the picture is not known to show the other."""
    return tuple(box for index, box in sample.objects if index == class_index) or sample.boxes


def asked_for(sample: Sample, class_index: int) -> Sample:
    """The sample with another class to be explained."""
    return replace(sample, class_index=class_index, boxes=boxes_of(sample, class_index))


def named(samples: Iterable[Sample], images: int | None) -> Iterator[Sample]:
    """The samples of the first so many pictures, each with a name as in the lines."""
    return (sample for _, sample in _numbered(samples, images))


def _data(study: Study, explainer: Explainer | None) -> tuple[Any, dict[str, Any]]:
    offered = {"count": study.images, "seed": study.seed, "class_names": explainer.class_names if explainer else None}
    return datasets.find(study.data, study.data_options, offered)


def _prepared(study: Study, spec: str, explainer: Explainer) -> Studied:
    data, options = _data(study, explainer)
    samples = partial(data.samples, options)
    first = list(islice(named(samples(), study.images), _LOOK_AHEAD))
    methods, refused = [], {}
    if first:
        evaluation(study, explainer, study.methods).check(first)
        images = as_images(explainer, [first[0].picture])
        for name in study.methods:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", CamkitWarning)
                    own = {key: value for key, value in study.options.items() if key.rpartition(".")[0] == name}
                    explainer(images, name, 0, study.layer, own)
                methods.append(name)
            except CamkitError as error:
                refused[name] = str(error)
        if not methods:
            raise CamkitError(f"'{spec}' can be explained by none of the methods: {next(iter(refused.values()))}")
    return Studied(spec, explainer, methods, refused, samples, [])


@dataclass
class _Pass:
    """One model's way through the data set, a batch at a time."""

    study: Study
    studied: Studied
    journal: Journal
    done: set[Key]
    seen: int = 0

    def __call__(self, batch: Sequence[tuple[int, Sample]]) -> None:
        """Adds the lines that these samples, each with the number of its picture, still lack."""
        self.seen += len(batch)
        for limit in sorted({self._limit(name) for name in self.studied.methods}):
            samples = [sample for number, sample in batch if limit == 0 or number < limit]
            methods = [name for name in self.studied.methods if self._limit(name) == limit]
            # what lacks one sample of a batch is shown all of it, so that a resumed study meets the same batches
            lacking = [name for name in methods if not self._has(name, samples)]
            if samples and lacking:
                lines = [line for line in self._lines(samples, lacking) if _key(line) not in self.done]
                self.journal.add(lines)
                self.done |= {_key(line) for line in lines}

    def _has(self, method: str, samples: Sequence[Sample]) -> bool:
        return all((self.studied.spec, method, one.name, one.class_index) in self.done for one in samples)

    def _limit(self, method: str) -> int:
        """How many pictures a method is shown; 0 means all."""
        return self.study.fewer.get(method, 0)

    def _lines(self, samples: Sequence[Sample], methods: Sequence[str]) -> Iterator[Line]:
        explainer, study = self.studied.explainer, self.study
        torch.manual_seed(study.seed)
        with torch.no_grad():
            logits = explainer.logits(as_images(explainer, [sample.picture for sample in samples])).float()
        chances = probabilities(logits, explainer.probability).cpu()
        likeliest, least = logits.argmax(dim=1).tolist(), logits.argmin(dim=1).tolist()
        classes: dict[Target, list[int]] = {
            "true": [
                sample.class_index if sample.class_index >= 0 else top
                for sample, top in zip(samples, likeliest, strict=True)
            ],
            "top": likeliest,
            "last": least,
        }
        # a class that is true and predicted is explained once
        questions = dict.fromkeys(
            (place, classes[target][place]) for place in range(len(samples)) for target in study.targets
        )
        found = self._measured(samples, list(questions), methods)
        for place, sample in enumerate(samples):
            known = datasets.present(sample)
            facts = {
                "image": sample.name,
                "label": sample.class_index,
                "predicted": likeliest[place],
                "confidence": round(float(chances[place, likeliest[place]]), 6),
                "right": likeliest[place] in known if known else None,
            }
            for method in methods:
                told = {
                    target: {
                        "class": classes[target][place],
                        "probability": round(float(chances[place, classes[target][place]]), 6),
                        "values": found[place, classes[target][place]]["values"][method],
                    }
                    for target in study.targets
                }
                yield {"model": self.studied.spec, "method": method, **facts, "targets": told}

    def _measured(
        self, samples: Sequence[Sample], questions: Sequence[tuple[int, int]], methods: Sequence[str]
    ) -> dict[tuple[int, int], Row]:
        # a metric that compares methods has values for each of them alone, but must be asked with several
        least = max(as_metric(name).least_methods for name in self.study.metrics)
        company = [name for name in self.studied.methods if name not in methods][: max(0, least - len(methods))]
        measure = evaluation(self.study, self.studied.explainer, [*methods, *company])
        found: dict[tuple[int, int], Row] = {}
        size = self.study.batch_size
        with warnings.catch_warnings():
            # a blank map has no value, which the counts tell
            warnings.simplefilter("ignore", CamkitWarning)
            for start in range(0, len(questions), size):
                part = questions[start : start + size]
                rows = measure([asked_for(samples[place], index) for place, index in part])
                found.update(zip(part, rows, strict=True))
        return found


def _key(line: Mapping[str, Any]) -> Key:
    try:
        return line["model"], line["method"], line["image"], line["label"]
    except KeyError as error:
        raise CamkitError(f"A line of results.jsonl lacks {error}; it is not of this version.") from None


def _numbered(samples: Iterable[Sample], images: int | None) -> Iterator[tuple[int, Sample]]:
    """The samples with the number of their picture, and a name that tells each class of each picture apart."""
    numbers: dict[str, int] = {}
    asked: Counter[tuple[str, int]] = Counter()
    for place, sample in enumerate(samples):
        name = sample.name or f"image-{place:06}"
        asked[name, sample.class_index] += 1
        again = asked[name, sample.class_index]
        name = f"{name}#{again}" if again > 1 else name
        number = numbers.setdefault(name, len(numbers))
        if images is not None and number >= images:
            return
        yield number, replace(sample, name=name)


def _batches(samples: Iterator[tuple[int, Sample]], size: int) -> Iterator[list[tuple[int, Sample]]]:
    while batch := list(islice(samples, size)):
        yield batch
