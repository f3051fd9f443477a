"""Make what the page loads: an exported graph, what the page must know of it, and sample pictures.

Usage: python prepare.py [--model demo:resnet] [--weights default] [--method gradcam] [--samples FILE ...]
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from expectation import write_expectation

import camkit
from camkit_adapters import demo
from camkit_export.session import Session

HERE = Path(__file__).parent
SCENES = [Path(demo.__file__).with_name("images") / f"scene-{number:02}.png" for number in (1, 2, 6, 7, 9, 12)]


def page_facts(session: Session) -> dict[str, Any]:
    """What the page must know of a graph; `src/model.ts` has the same names.

    Raises:
        SystemExit: the graph has no classes to choose from, or expects pictures that the page cannot make.
    """
    facts: Mapping[str, Any] = session.provenance
    if facts.get("output", "logits") != "logits" or facts.get("probability") is None:
        raise SystemExit(f"{facts['model']} has no classes, so the page has nothing to choose from.")
    if facts.get("preprocessing") is None:
        raise SystemExit(f"{facts['model']} does not say how its pictures are preprocessed.")
    return {
        **{name: facts[name] for name in ("model", "method", "layer", "probability", "preprocessing")},
        "relu": session.relu,
        "class_names": session.class_names or [f"class {index}" for index in range(session.classes)],
    }


def write_page_files(model: camkit.LoadedModel, method: str, samples: Sequence[Path], folder: Path) -> Session:
    """Writes model.onnx, model.json and samples/ into `folder`; the session of the graph."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "samples").mkdir(parents=True)
    camkit.export(camkit.Explainer(model), folder / "model.onnx", method=method)
    session: Session = camkit.load(folder / "model.onnx")
    (folder / "model.json").write_text(json.dumps(page_facts(session), indent=2), encoding="utf-8")
    for sample in samples:
        shutil.copy(sample, folder / "samples")
    (folder / "samples" / "index.json").write_text(json.dumps([sample.name for sample in samples]), encoding="utf-8")
    return session


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo:resnet", help="as camkit's commands take it")
    parser.add_argument("--weights", default="default", help="default, none or a file")
    parser.add_argument("--method", default="gradcam", help="any method that can be exported")
    parser.add_argument("--samples", nargs="+", type=Path, default=SCENES, help="pictures to offer")
    arguments = parser.parse_args()
    torch.manual_seed(0)  # random weights are the same ones every time
    model = camkit.load_model(arguments.model, weights=arguments.weights)
    session = write_page_files(model, arguments.method, arguments.samples, HERE / "public")
    write_expectation(model, session, arguments.samples, HERE / "tests" / "expected")
    print(f"Wrote public/model.onnx for {arguments.model}, verified, and {len(arguments.samples)} samples.")


if __name__ == "__main__":
    main()
