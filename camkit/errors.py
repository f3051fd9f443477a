"""What camkit says when something cannot work: one sentence that names the mistake and the way out."""

from collections.abc import Iterable
from difflib import get_close_matches


class CamkitError(Exception):
    """A mistake in what camkit was given; its text is one sentence for the user, the CLI exits with 2."""


class CamkitWarning(UserWarning):
    """Something is valid and most likely not what the user wants, or slower than it need be."""


class MapWarning(CamkitWarning):
    """What there is to say about single images' maps, such as one that is all zero; `Explanation.notes` has it too."""


def suggestion(name: str, candidates: Iterable[str], *, many: int = 3) -> str:
    """The end of a sentence about an unknown name: the nearest candidates, or all if there are few.

    Returns text such as ``"did you mean 'layer4'?"``; empty when there is nothing to suggest.
    """
    known = list(dict.fromkeys(candidates))
    lowered: dict[str, str] = {}
    for candidate in known:
        lowered.setdefault(candidate.lower(), candidate)
    near = [lowered[match] for match in get_close_matches(name.lower(), lowered, n=many, cutoff=0.5)]
    if near:
        return f"did you mean {_either(near)}?"
    if 0 < len(known) <= 12:
        return f"choose {_either(known)}."
    return ""


def unknown(kind: str, name: str, candidates: Iterable[str], hint: str = "") -> CamkitError:
    """The error for a name that nothing answers to, with the nearest names, or a hint where none is near."""
    ending = suggestion(name, candidates) or hint
    return CamkitError(f"There is no {kind} '{name}'" + (f"; {ending}" if ending else "."))


def first_line(error: BaseException) -> str:
    """What another library's error says in its first line; the name of its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip()


def _either(names: list[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + f" or {quoted[-1]}"
