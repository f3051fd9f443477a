"""Runs a study: pieces of the data set go to an engine, and what comes back is written at once.

Each image, model and method is one JSON line; what is there is not done again.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from camkit import datasets
from camkit.datasets import Pictures
from camkit.engines import Light, find_engine
from camkit.errors import CamkitError, CamkitWarning
from camkit.evaluate import Row, Sample
from camkit.explain import Explainer
from camkit.journal import Journal, Line
from camkit.metrics import as_metric
from camkit.pictures import as_images
from camkit.registry import registry
from camkit.study import Studied, Study, Target, asked_for, data_of, evaluation, options_of
from camkit.targets import probabilities

Load = Callable[[str], Explainer]
Key = tuple[str, str, str, int]

# how many pictures are looked at for boxes before anything is computed
_LOOK_AHEAD = 32


@dataclass(frozen=True)
class Piece:
    """Pictures of the data set from `start` to before `stop`, and what they lack.

    Attributes:
        lacking: methods, with the place before which they stop.
    """

    start: int
    stop: int
    lacking: tuple[tuple[int, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Found:
    """What came of a piece: its lines, and those of problems with its pictures."""

    piece: Piece
    lines: list[Line]
    problems: list[Line]


def run(
    study: Study,
    load: Load,
    journal: Journal,
    advance: Callable[[int], None] = lambda pictures: None,
    *,
    engine: str = "local",
    engine_options: Mapping[str, Any] | None = None,
) -> Iterator[Studied]:
    """Does what the journal lacks, one model after the other, and gives each when its lines are complete.

    What of the data set cannot be read is written into ``problems.jsonl`` beside the journal, and not tried again.

    Args:
        study: what is measured.
        load: builds an Explainer for a SPEC; workers elsewhere call it too, so it must be picklable for them.
        journal: the lines that are there, and where new ones go.
        advance: called with the number of pictures that are done.
        engine: who does the work.
        engine_options: the engine's own.

    Raises:
        CamkitError: a name is not known, a metric needs what the data set lacks, no method fits a model, or a line
            cannot be written.
    """
    for name in study.methods:
        registry().get("method", name)
    for name in study.metrics:
        as_metric(name)
    share = find_engine(engine, engine_options)
    record = _Record(study, journal, Journal(journal.path.with_name("problems.jsonl")))
    for spec in study.models:
        studied = _prepared(study, spec, load(spec))
        work = Measuring(study, spec, tuple(studied.methods), load)
        # this process has them already
        work.explainer, work.pictures = studied.explainer, studied.pictures
        for found in share(record.lacking(studied, advance), work, engine_options):
            record.add(found)
            advance(found.piece.stop - found.piece.start)
        studied.problems = [*studied.pictures.remarks, *record.problems_of(spec)]
        yield studied


def _prepared(study: Study, spec: str, explainer: Explainer) -> Studied:
    pictures = Pictures(data_of(study, explainer), study.images)
    first = _first(pictures)
    if not first:
        raise CamkitError(f"The data set '{study.data}' has no samples, so there is nothing to measure.")
    evaluation(study, explainer, study.methods).check(first)
    images = as_images(explainer, [first[0].picture])
    methods, refused = [], {}
    for name in study.methods:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CamkitWarning)
                explainer(images, name, 0, study.layer, options_of(study, [name]))
            methods.append(name)
        except CamkitError as error:
            refused[name] = str(error)
    if not methods:
        raise CamkitError(f"'{spec}' can be explained by none of the methods: {next(iter(refused.values()))}")
    return Studied(spec, explainer, methods, refused, pictures, [])


def _first(pictures: Pictures) -> list[Sample]:
    """The samples of the first pictures that can be read."""
    for start in range(0, len(pictures), _LOOK_AHEAD):
        found = pictures.read(start, start + _LOOK_AHEAD).samples
        if found:
            return [sample for _, sample in found]
    return []


class _Record:
    """What is written, and what is still to be done."""

    def __init__(self, study: Study, journal: Journal, problems: Journal) -> None:
        self.study, self.journal, self.problems = study, journal, problems
        self._keys = {_key(line) for line in journal.lines}
        self._noted = {_problem(line) for line in problems.lines}

    def lacking(self, studied: Studied, advance: Callable[[int], None]) -> Iterator[Piece]:
        """The pieces that lack something; `advance` is told of the others."""
        written = Counter(_place(line) for line in self.journal.lines)
        wanted = {_place(line): line["of"] for line in self.journal.lines}
        unreadable = {line["place"] for line in self.problems.lines if line["model"] == studied.spec and not line["of"]}

        def has(method: str, places: range) -> bool:
            keys = [(studied.spec, method, place) for place in places if place not in unreadable]
            return all(key in wanted and written[key] >= wanted[key] for key in keys)

        for start in range(0, len(studied.pictures), self.study.batch_size):
            stop = min(start + self.study.batch_size, len(studied.pictures))
            groups: dict[int, list[str]] = {}
            for method in studied.methods:
                end = min(stop, self.study.fewer.get(method, stop))
                # what lacks one picture of a piece is shown all of it, so that a resumed study meets the same batches
                if not has(method, range(start, end)):
                    groups.setdefault(end, []).append(method)
            if groups:
                yield Piece(start, stop, tuple((end, tuple(methods)) for end, methods in sorted(groups.items())))
            else:
                advance(stop - start)

    def add(self, found: Found) -> None:
        """Writes what is new."""
        new = [line for line in found.problems if _problem(line) not in self._noted]
        if new:
            self.problems.add(new)
            self._noted |= {_problem(line) for line in new}
        lines = [line for line in found.lines if _key(line) not in self._keys]
        if lines:
            self.journal.add(lines)
            self._keys |= {_key(line) for line in lines}

    def problems_of(self, spec: str) -> list[str]:
        """One sentence for each problem with the pictures of a model, in their order."""
        own = [line for line in self.problems.lines if line["model"] == spec]
        return [line["problem"] for line in sorted(own, key=lambda line: line["place"])]


@dataclass
class Measuring(Light):
    """Measures pieces of a data set with one model.

    Attributes:
        methods: those that the model does not refuse.
        load: builds an Explainer for a SPEC.
    """

    study: Study
    spec: str
    methods: tuple[str, ...]
    load: Load

    @cached_property
    def explainer(self) -> Explainer:
        """The model."""
        return self.load(self.spec)

    @cached_property
    def pictures(self) -> Pictures:
        """The data set as the model takes it."""
        return Pictures(data_of(self.study, self.explainer), self.study.images)

    def __call__(self, piece: Piece) -> Found:
        """The lines that a piece lacks."""
        read = self.pictures.read(piece.start, piece.stop)
        samples = Counter(place for place, _ in read.samples)
        lines: list[Line] = []
        for stop, methods in piece.lacking:
            own = [(place, sample) for place, sample in read.samples if place < stop]
            if own:
                for (place, _), told in zip(own, self._told([sample for _, sample in own], methods), strict=True):
                    lines += [
                        {"model": self.spec, "method": method, "place": place, "of": samples[place], **facts}
                        for method, facts in told.items()
                    ]
        problems = [
            {"model": self.spec, "place": place, "of": samples[place], "problem": problem}
            for place, problem in read.problems
        ]
        return Found(piece, lines, problems)

    def _told(self, samples: Sequence[Sample], methods: Sequence[str]) -> Iterator[dict[str, Line]]:
        """For each sample what each method's line says."""
        explainer, study = self.explainer, self.study
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
            yield {
                method: {
                    **facts,
                    "targets": {
                        target: {
                            "class": classes[target][place],
                            "probability": round(float(chances[place, classes[target][place]]), 6),
                            "values": found[place, classes[target][place]]["values"][method],
                        }
                        for target in study.targets
                    },
                }
                for method in methods
            }

    def _measured(
        self, samples: Sequence[Sample], questions: Sequence[tuple[int, int]], methods: Sequence[str]
    ) -> dict[tuple[int, int], Row]:
        # a metric that compares methods has values for each of them alone, but must be asked with several
        least = max(as_metric(name).least_methods for name in self.study.metrics)
        company = [name for name in self.methods if name not in methods][: max(0, least - len(methods))]
        measure = evaluation(self.study, self.explainer, [*methods, *company])
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
    return _read(line, "model"), _read(line, "method"), _read(line, "image"), _read(line, "label")


def _place(line: Mapping[str, Any]) -> tuple[str, str, int]:
    return _read(line, "model"), _read(line, "method"), _read(line, "place")


def _problem(line: Mapping[str, Any]) -> tuple[str, int, str]:
    return _read(line, "model"), _read(line, "place"), _read(line, "problem")


def _read(line: Mapping[str, Any], name: str) -> Any:
    if name not in line:
        raise CamkitError(f"A line of results.jsonl or problems.jsonl lacks '{name}'; it is not of this version.")
    return line[name]
