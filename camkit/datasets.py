"""Data sets as they are asked for, and what those that lie in files have in common: a broken file stops nothing."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
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
