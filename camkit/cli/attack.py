"""``camkit attack``: adversarial pictures, and for every image a panel with its maps before and after."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from camkit.cli import printing
from camkit.cli.options import ModelOptions, comma_separated, parse_options, with_model
from camkit.cli.recording import Images, recording, show
from camkit.errors import CamkitError, CamkitWarning

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from camkit.attacks import AttackResult
    from camkit.explain import Explainer
    from camkit.models import LoadedModel


@with_model()
def attack(
    options: ModelOptions,
    images: Images,
    name: Annotated[
        str, typer.Option("--attack", metavar="NAME", help="The attack; camkit plugins lists them.")
    ] = "pgd",
    eps: Annotated[
        str | None,
        typer.Option(
            metavar="E", help="The budget in the threat model's unit, such as 8/255.  [default: the norm's own]"
        ),
    ] = None,
    norm: Annotated[
        str | None, typer.Option(metavar="NAME", help="The threat model, where the attack works in several: linf, l2.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(metavar="CLASS", help="The class that is to be predicted; left out, any other will do."),
    ] = None,
    label: Annotated[
        str | None, typer.Option(metavar="CLASS", help="The right class.  [default: what the model predicts]")
    ] = None,
    method: Annotated[str, typer.Option(metavar="NAME", help="Whose maps are shown.")] = "gradcam",
    layer: Annotated[str | None, typer.Option(metavar="LAYER", help="The target layer of the maps.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="A.name=value", help="An option of the attack or of the method; repeatable."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for pictures and attacks.jsonl.")
    ] = Path("camkit-output"),
    batch_size: Annotated[int, typer.Option(min=1, help="Images attacked at once.")] = 16,
    colormap: Annotated[str | None, typer.Option(metavar="NAME", help="Any matplotlib colormap.")] = None,
) -> None:
    """Fool the model, and show what becomes of its maps.

    For each image there is an adversarial PNG, which is still adversarial when it is read back, a panel of original,
    change and adversarial image with the maps of the old and the new class, and a JSON line.
    """
    from camkit import output as files
    from camkit.attacks import attack as run
    from camkit.images import find_images, read_image
    from camkit.injection import own_options
    from camkit.visualize import check_colormap

    check_colormap(colormap)
    epsilon = parse_budget(eps)
    given = parse_options(option or [], [name, method])
    own = {one: own_options(given, one, [name, method]) for one in (name, method)}
    paths = list(dict.fromkeys(find_images(images)))
    for path in paths:
        read_image(path)
    explainer, loaded = options.explainer(comma_separated(layer) or None)
    folder = files.directory(output)
    stems = files.distinct(files.file_name(path.stem, name) for path in paths)
    table = printing.table("image", "label", "before", "after", "", "distance", "queries")
    lines: list[dict[str, Any]] = []
    results: list[AttackResult] = []
    with recording("Attacking", len(paths), lines, folder / "attacks.jsonl") as advance:
        for start in range(0, len(paths), batch_size):
            batch = paths[start : start + batch_size]
            tensors, _ = loaded.read(batch)
            result = run(
                explainer,
                tensors,
                name,
                epsilon=epsilon,
                norm=norm,
                target=to,
                labels=label,
                options=own[name],
                method=method,
                layer=layer,
                eight_bit=True,
            )
            results.append(result)
            seen = Seen.of(explainer, loaded, result, method, own[method])
            for index, (path, stem) in enumerate(zip(batch, stems[start:], strict=False)):
                record = {"image": str(path), **seen.save(index, folder, stem, path.name, colormap)}
                lines.append(record)
                table.add_row(path.name, *_row(record))
                advance()
    show(table)
    printing.line(summary(results))
    printing.line(f"Adversarial images and panels ({len(paths)} each) and attacks.jsonl are in {folder}")


@dataclass(frozen=True)
class Seen:
    """A batch that was attacked, as it is shown: classes, maps and pictures.

    Attributes:
        result: what the attack did.
        loaded: the model.
        new: the class that is shown beside the label: the target, or else the likeliest other class afterwards, [B].
        maps: explanations by (class, image): ``old`` or ``new``, and ``before`` or ``after``.
    """

    result: "AttackResult"
    loaded: "LoadedModel"
    new: "Tensor"
    maps: Mapping[tuple[str, str], Any]

    @classmethod
    def of(
        cls,
        explainer: "Explainer",
        loaded: "LoadedModel",
        result: "AttackResult",
        method: str,
        options: Mapping[str, Any],
    ) -> "Seen":
        """Explains both classes on both images."""
        from camkit.loss import to_model

        others = result.confidence_after.scatter(1, result.labels[:, None], -1)
        new = others.argmax(dim=1) if result.target is None else result.target
        images = {"before": to_model(explainer, result.original).to(result.images.dtype), "after": result.images}
        with warnings.catch_warnings():
            # a blank map is seen in the panel
            warnings.simplefilter("ignore", CamkitWarning)
            maps = {
                (which, when): explainer(shown, method, target=classes, options=dict(options))
                for which, classes in (("old", result.labels), ("new", new))
                for when, shown in images.items()
            }
        return cls(result, loaded, new, maps)

    def save(self, index: int, folder: Path, stem: str, title: str, colormap: str | None) -> dict[str, Any]:
        """Writes the adversarial image and the panel; the record of both."""
        from camkit.steerable import overlap
        from camkit.visualize import comparison_grid, save_png

        result, picture, panel = self.result, f"{stem}.png", f"{stem}-panel.png"
        save_png(folder / picture, _picture(result.pixels[index]))
        read_back = self._read_back(folder / picture, index)
        before, after = self._prediction(index, "before"), self._prediction(index, "after")
        kept = overlap(self.maps["old", "before"].maps, self.maps["old", "after"].maps)
        record = {
            "picture": picture,
            "panel": panel,
            "attack": result.attack,
            "options": dict(result.options),
            "norm": result.norm,
            "epsilon": result.epsilon if result.norm != "smallest" else None,
            "label": self._class(int(result.labels[index])),
            "target": None if result.target is None else self._class(int(result.target[index])),
            "prediction": {"before": before, "after": after},
            "already_wrong": bool(result.already_wrong[index]),
            "success": bool(result.success[index]),
            "read_back": read_back,
            "distance": float(result.distance[index]),
            "queries": int(result.queries[index]),
            "map": {
                "method": self.maps["old", "before"].method,
                "layer": self.maps["old", "before"].layer,
                "strongest_fifth_kept": float(kept[index]),
            },
        }
        cells, rows, columns = self._panel(index, colormap)
        comparison_grid(cells, rows=rows, columns=columns, title=f"{title}: {_verdict(record)}", path=folder / panel)
        return record

    def _read_back(self, path: Path, index: int) -> dict[str, bool]:
        """Whether the saved file does what the attack did: as it is, and resized as the model has it."""
        import numpy as np
        import torch

        from camkit.goals import Goal
        from camkit.images import read_image

        result, preprocessing = self.result, self.loaded.preprocessing
        target = None if result.target is None else result.target[index : index + 1]
        goal = Goal(result.labels[index : index + 1], target, result.probability)
        picture = read_image(path)
        levels = torch.from_numpy(np.array(picture, dtype=np.float32)).permute(2, 0, 1)[: preprocessing.channels] / 255
        found = {}
        for name, shown in {"as_saved": preprocessing.normalise(levels), "resized": preprocessing(picture)}.items():
            with torch.no_grad():
                logits = self.loaded.module(shown[None].to(result.images))
            found[name] = bool(goal.margin(logits.float().to(goal.labels.device)) > 0)
        return found

    def _panel(self, index: int, colormap: str | None) -> tuple[Any, list[str], list[str]]:
        from camkit import visualize

        result = self.result
        original, adversarial = (
            visualize.enlarged(_picture(pixels[index])) for pixels in (result.original, result.pixels)
        )
        factor = original.shape[0] // result.pixels.shape[2]
        change = (result.pixels[index] - result.original[index]).detach().float().cpu().numpy()
        largest = float(abs(change).max())
        amplified = visualize.upscale(visualize.signed_pixels(change, percentile=100), factor)
        cells: list[list[Any]] = [[original, amplified, adversarial]]
        rows = ["picture"]
        for which, classes in (("old", result.labels), ("new", self.new)):
            before, after = (self.maps[which, when] for when in ("before", "after"))
            drawn = [
                one.draw(index, ground, colormap=colormap) for one, ground in ((before, original), (after, adversarial))
            ]
            cells.append([drawn[0], self._drift(before, after, index, original, factor), drawn[1]])
            rows.append(f"{before.method} of {self._name(int(classes[index]))}")
        amplified_by = round(0.5 / largest) if largest else 0
        scale = f"change, amplified {amplified_by} times" if amplified_by > 1 else "change" if largest else "no change"
        captions = [
            f"{word}\n{self._words(index, when)}" for word, when in (("original", "before"), ("adversarial", "after"))
        ]
        middle = f"{scale}\nmaps: gained (red), lost (blue)"
        return cells, rows, [captions[0], middle, captions[1]]

    def _drift(self, before: Any, after: Any, index: int, ground: "NDArray[np.uint8]", factor: int) -> Any:
        """What the heatmap gained (red) and lost (blue) over a pale picture; None where a method gives no map."""
        import numpy as np

        from camkit import visualize

        if before.kind != "map":
            return None
        change = visualize.upscale((after.heatmaps[index] - before.heatmaps[index]).detach().cpu().numpy(), factor)
        pale = 255 - (255 - ground.mean(axis=2, keepdims=True)) / 3
        colour = np.where(change[..., None] > 0, (215, 25, 28), (33, 80, 190))
        mixed = pale + np.abs(change)[..., None].clip(0, 1) * (colour - pale)
        return np.asarray(np.rint(mixed), dtype=np.uint8)

    def _prediction(self, index: int, when: str) -> dict[str, Any]:
        result = self.result
        chances = (result.confidence_before if when == "before" else result.confidence_after)[index]
        top = int(chances.argmax())
        found = {**self._class(top), "probability": float(chances[top])}
        found["label_probability"] = float(chances[int(result.labels[index])])
        if result.target is not None:
            found["target_probability"] = float(chances[int(result.target[index])])
        return found

    def _words(self, index: int, when: str) -> str:
        """The prediction as `in_words` has it."""
        result = self.result
        target = None if result.target is None else self._class(int(result.target[index]))
        return in_words(self._prediction(index, when), self._class(int(result.labels[index])), target)

    def _class(self, index: int) -> dict[str, Any]:
        return {"class": index, "name": self._name(index)}

    def _name(self, index: int) -> str:
        from camkit.targets import class_label

        return class_label(index, self.loaded.class_names)


def parse_budget(text: str | None) -> float | None:
    """A budget as people write it: ``0.03``, ``8/255``.

    Raises:
        CamkitError: it is no number.
    """
    if text is None:
        return None
    above, slash, below = text.partition("/")
    try:
        return float(above) / (float(below) if slash else 1)
    except (ValueError, ZeroDivisionError):
        raise CamkitError(f"--eps was '{text}'; a number is expected, such as 8/255 or 0.5.") from None


def in_words(prediction: Mapping[str, Any], label: Mapping[str, Any], target: Mapping[str, Any] | None) -> str:
    """The predicted class with its confidence, then that of the target, or else of the label, where it is another."""
    wanted, key = (label, "label_probability") if target is None else (target, "target_probability")
    words = f"{prediction['name']} {prediction['probability']:.0%}"
    if prediction["class"] == wanted["class"]:
        return words
    return f"{words}, {wanted['name']} {prediction[key]:.0%}"


def summary(results: "list[AttackResult]") -> str:
    """One sentence over all images, counted as the papers do."""
    import torch

    wrong, success = (torch.cat([getattr(one, what) for one in results]) for what in ("already_wrong", "success"))
    right = int((~wrong).sum())
    said = f"{int(success.sum())} of {right} images that the model got right were attacked with success"
    return f"{said}; {int(wrong.sum())} were wrong already and are not counted." if wrong.any() else f"{said}."


def _picture(pixels: "Tensor") -> "NDArray[np.uint8]":
    """Pixels [C, H, W] in [0, 1] as a picture [H, W, 3]."""
    import numpy as np

    levels = (pixels.detach().cpu() * 255).round().byte().permute(1, 2, 0).numpy()
    return np.ascontiguousarray(np.broadcast_to(levels, (*levels.shape[:2], 3)))


def _verdict(record: Mapping[str, Any]) -> str:
    if record["already_wrong"]:
        return "wrong already, left as it is"
    size = f"{'l2' if record['norm'] == 'smallest' else record['norm']} {record['distance']:.3g}"
    return f"{record['attack']} ({size}), {'success' if record['success'] else 'no success'}"


def _row(record: Mapping[str, Any]) -> list[str]:
    predictions = (record["prediction"][when] for when in ("before", "after"))
    said = "already wrong" if record["already_wrong"] else "success" if record["success"] else "no success"
    return [
        record["label"]["name"],
        *(in_words(one, record["label"], record["target"]) for one in predictions),
        said,
        f"{record['distance']:.4g}",
        str(record["queries"]),
    ]
