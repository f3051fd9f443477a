"""Data sets as they are asked for, and what those that lie in files have in common: a broken file stops nothing."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from camkit.errors import CamkitError
from camkit.evaluate import DataSet, Sample
from camkit.registry import registry

Entry = TypeVar("Entry")

UNKNOWN_CLASS = -1
"""The class index of a picture that has no label: whatever the model predicts is explained."""


@dataclass
class Samples(Generic[Entry]):
    """Samples read one entry at a time; what cannot be read is left out and noted.

    Attributes:
        entries: one for each picture.
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
            try:
                yield from self.read(entry, self.problems.append)
            except CamkitError as error:
                self.problems.append(str(error))


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


def find(spec: str, options: dict[str, Any]) -> tuple[DataSet, dict[str, Any]]:
    """The data set that ``name`` or ``name:PATH`` stands for, and its options; PATH is the option ``path``.

    Raises:
        CamkitError: there is no such data set, or it takes no path.
    """
    known = registry().names("dataset", qualified=True)
    named = [name for name in known if spec == name or spec.startswith(f"{name}:")]
    # a data set may itself be written distribution:name
    name = max(named, key=len) if named else spec.partition(":")[0]
    found: DataSet = registry().get("dataset", name)
    path = spec.removeprefix(name).removeprefix(":")
    if path and "path" not in found.signature.options_model.model_fields:
        raise CamkitError(f"The data set '{name}' takes no path; write --data {name}.")
    return found, {**options, "path": path} if path else dict(options)
