"""Data sets as they are asked for, and what those that lie in files have in common: a broken file stops nothing."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import Any, Generic, TypeVar

from camkit.errors import CamkitError
from camkit.evaluate import DataSet, Sample
from camkit.registry import registry

Entry = TypeVar("Entry")

UNKNOWN_CLASS = -1
"""The class index of a picture that has no label: whatever the model predicts is explained."""


@dataclass
class Samples(Generic[Entry]):
    """Samples read one entry at a time, in any order; what cannot be read is left out and noted.

    Attributes:
        entries: one for each picture, of different names.
        read: the samples of an entry. A `CamkitError` that it raises is the problem of that entry alone; what it
            passes to its second argument is noted as well.
        problems: one sentence each, of the last time that the samples were gone through, in order.
    """

    entries: Sequence[Entry]
    read: Callable[[Entry, Callable[[str], None]], Iterator[Sample]]
    remarks: Sequence[str] = ()
    problems: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Sample]:
        self.problems = list(self.remarks)
        for entry in self.entries:
            yield from self.of(entry, self.problems.append)

    def of(self, entry: Entry, note: Callable[[str], None]) -> Iterator[Sample]:
        """The samples of one entry; `note` is told what is wrong with it."""
        try:
            yield from self.read(entry, note)
        except CamkitError as error:
            note(str(error))


@dataclass
class Reading:
    """Pictures that were read.

    Attributes:
        samples: each with the place of its picture in the data set, and a name that tells its picture from the others.
        problems: what could not be read, or not wholly, with its place.
    """

    samples: list[tuple[int, Sample]] = field(default_factory=list)
    problems: list[tuple[int, str]] = field(default_factory=list)


class Pictures:
    """A data set by its pictures, some of which can be read without the others.

    A picture is an entry of `Samples`. Of any other iterable it is the samples in a row that have one name; those
    before it must be gone through, and how many there are is known only at the end.

    Args:
        samples: gives the data set from its beginning.
        limit: how many pictures are taken; None takes all.
    """

    def __init__(self, samples: Callable[[], Iterable[Sample]], limit: int | None = None) -> None:
        self._samples, self._limit = samples, limit
        self._next = 0
        self._rest: Iterator[list[Sample]] = iter(())

    def __len__(self) -> int:
        return self._length

    def read(self, start: int, stop: int) -> Reading:
        """The pictures from `start` to before `stop`, or to the end."""
        stop = stop if self._limit is None else min(stop, self._limit)
        if not isinstance(self._all, Samples):
            return Reading([(place, one) for place, some in self._gone_through(start, stop) for one in some])
        found = Reading()
        for place in range(start, min(stop, len(self._all))):
            problems: list[str] = []
            own = list(self._all.of(self._all.entries[place], problems.append))
            found.samples += [(place, one) for one in _told_apart(place, own, Counter())]
            found.problems += [(place, problem) for problem in problems]
        return found

    @property
    def remarks(self) -> list[str]:
        """What is wrong with the data set, and with none of its pictures."""
        return list(self._all.remarks) if isinstance(self._all, Samples) else []

    @cached_property
    def _all(self) -> Iterable[Sample]:
        return self._samples()

    @cached_property
    def _length(self) -> int:
        whole = len(self._all) if isinstance(self._all, Samples) else sum(1 for _ in _in_a_row(self._samples()))
        return whole if self._limit is None else min(whole, self._limit)

    def _gone_through(self, start: int, stop: int) -> Iterator[tuple[int, list[Sample]]]:
        if start < self._next or self._next == 0:
            self._next, self._rest = 0, _in_a_row(self._samples())
        while self._next < stop:
            try:
                own = next(self._rest)
            except StopIteration:
                return
            self._next += 1
            if self._next > start:
                yield self._next - 1, own


def _in_a_row(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    asked: Counter[tuple[str, int]] = Counter()
    rows = groupby(enumerate(samples), key=lambda pair: pair[1].name or pair[0])
    for place, (_, row) in enumerate(rows):
        yield _told_apart(place, [one for _, one in row], asked)


def _told_apart(place: int, samples: Iterable[Sample], asked: "Counter[tuple[str, int]]") -> list[Sample]:
    """The samples of one picture with names under which no class is asked for twice; `asked` holds those before."""
    found = []
    for sample in samples:
        name = sample.name or f"image-{place:06}"
        asked[name, sample.class_index] += 1
        again = asked[name, sample.class_index]
        found.append(replace(sample, name=f"{name}#{again}" if again > 1 else name))
    return found


def present(sample: Sample) -> frozenset[int]:
    """The classes that a picture is known to show; empty where nobody knows."""
    known = {sample.class_index, *(index for index, _ in sample.objects)}
    return frozenset(index for index in known if index >= 0)


def chosen(entries: Sequence[Entry], count: int | None, seed: int) -> list[Entry]:
    """So many entries drawn with a seed, in the order in which they came; all where there are no more than that.

    Data sets lie sorted by class, so that the first few would be of one class.
    """
    if count is None or count >= len(entries):
        return list(entries)
    # not for secrets
    return [entries[place] for place in sorted(random.Random(seed).sample(range(len(entries)), count))]  # noqa: S311


def is_data_set(spec: str) -> bool:
    """Whether ``name`` or ``name:PATH`` names a data set."""
    return bool(_named(spec))


def find(
    spec: str, options: Mapping[str, Any], offered: Mapping[str, Any] | None = None
) -> tuple[DataSet, dict[str, Any]]:
    """The data set that ``name`` or ``name:PATH`` stands for, and its options; PATH is the option ``path``.

    Args:
        spec: names may be written with hyphens, too.
        options: what was asked for.
        offered: what is known anyway, such as how many samples are wanted: given where the data set has such an option.

    Raises:
        CamkitError: there is no such data set, or it takes no path.
    """
    name = _named(spec) or spec.partition(":")[0]
    found: DataSet = registry().get("dataset", name)
    takes = found.signature.options_model.model_fields
    known = {key: value for key, value in (offered or {}).items() if key in takes and value is not None}
    path = spec[len(name) :].removeprefix(":")
    if path and "path" not in takes:
        raise CamkitError(f"The data set '{name}' takes no path; write --data {name}.")
    return found, {**known, **options, **({"path": path} if path else {})}


def _named(spec: str) -> str:
    """The longest name of a data set that the spec begins with: one may be written distribution:name."""
    written = spec.replace("-", "_")
    known = registry().names("dataset", qualified=True)
    found = [name for name in known if f"{written}:".startswith(f"{name.replace('-', '_')}:")]
    return max(found, key=len, default="")
