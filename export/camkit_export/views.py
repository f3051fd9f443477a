"""Single maps of a session: what a file that holds several, or several classes, is compared by."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from camkit_export.inputs import digest
from camkit_export.session import Integers, Result, Session

# The batches of one kind of images, and one more.
_KEPT = 4


class Answers:
    """The answers of a session, of which each gives all maps: the last few are kept and not asked for again."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._kept: dict[bytes, list[Result]] = {}

    def __call__(
        self, images: NDArray[Any], classes: Integers | None, further: Mapping[str, NDArray[Any]]
    ) -> list[Result]:
        """As `Session.results`."""
        key = digest(images, *(() if classes is None else (classes,)), *further.values())
        if key not in self._kept:
            if len(self._kept) == _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = self.session.results(images, classes, **further)
        return self._kept[key]


@dataclass(frozen=True)
class View:
    """One map of a session, for one class of each image: what a graph of that map alone would answer."""

    answers: Answers
    name: str
    rank: int | None

    @property
    def title(self) -> str:
        """Which map and class it is; nothing where there is one."""
        ranked = "" if self.rank is None else f"class {self.rank + 1} of {self.answers.session.top_k}"
        return ", ".join(part for part in (self.name, ranked) if part)

    def __call__(self, images: NDArray[Any], classes: Integers, further: Mapping[str, NDArray[Any]]) -> Result:
        """As for a session of one map."""
        session = self.answers.session
        found = self.answers(images, classes if self.rank is None else None, further)
        result = found[session.maps.index(self.name)]
        if self.rank is None:
            return result
        heat = result.heatmaps if session.raw else result.heatmaps[:, self.rank]
        return Result(result.logits, heat, result.maps[:, self.rank], result.classes[:, self.rank])


def views(session: Session) -> list[View]:
    """Every map of a session, and of each every class, in the order of its test vectors."""
    ranks = [None] if session.top_k is None else range(session.top_k)
    answers = Answers(session)
    return [View(answers, name, rank) for name in session.maps for rank in ranks]
