"""Labels of a data set as class indices of a model."""

from collections.abc import Iterable, Mapping, Sequence

from camkit.errors import CamkitError, unknown


def match_classes(
    labels: Iterable[str],
    class_names: Sequence[str] | None,
    *,
    where: str,
    aliases: Mapping[str, int] | None = None,
    skip_unknown: bool = False,
) -> dict[str, int]:
    """The class index of each label: by the class's name, one of its synonyms ("tabby, tabby cat"), an alias or number.

    Upper and lower case, and underscores and spaces, make no difference.

    Args:
        labels: what the data set calls its classes.
        class_names: the model's, in the order of its outputs; None where they are unknown, when numbers alone are
            understood, and aliases.
        where: the data set, for the sentence that says what does not fit.
        aliases: other names, such as synsets.
        skip_unknown: whether labels that the model does not know are left out.

    Raises:
        CamkitError: a label is not known (and is not to be left out), or none is.
    """
    known = _known(class_names or (), aliases or {})
    asked = list(dict.fromkeys(labels))
    found = {label: known[_plain(label)] for label in asked if _plain(label) in known}
    for label in asked:
        # a class may be named by a digit that is not its number
        if label not in found and label.isdecimal() and (class_names is None or int(label) < len(class_names)):
            found[label] = int(label)
    missing = [label for label in asked if label not in found]
    if class_names is None and missing and not found:
        raise CamkitError(
            f"The classes of '{where}', such as '{missing[0]}', cannot be found: the model's class names are not "
            f"known; give them with --labels, or call the classes by their numbers."
        )
    if missing and not (skip_unknown and found):
        first = str(unknown("class", missing[0], class_names or [])).rstrip(".?")
        raise CamkitError(
            f"The classes of '{where}' do not fit the model, which lacks {len(missing)} of {len(asked)}: "
            f"{first[0].lower()}{first[1:]}" + ("?" if "did you mean" in first else ".")
        )
    return found


def _known(class_names: Sequence[str], aliases: Mapping[str, int]) -> dict[str, int]:
    known: dict[str, int] = {}
    for index, name in enumerate(class_names):
        known.setdefault(_plain(name), index)
    # synonyms second: ImageNet's "crane" is a bird, and a synonym of nothing else's whole name
    for index, name in enumerate(class_names):
        for synonym in name.split(","):
            known.setdefault(_plain(synonym), index)
    return {_plain(name): index for name, index in aliases.items()} | known


def _plain(label: str) -> str:
    return " ".join(label.replace("_", " ").lower().split())
