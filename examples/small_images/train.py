"""Train the small CNN, and write its weights and the test pictures, a folder for each class.

Usage: python train.py [--cifar10 FOLDER] [--steps 400] [--pictures 1000]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR

# isort: split
from pictures import Pictures, cifar10, house_numbers
from small_cnn import CIFAR10, DIGITS, PREPROCESSING, SmallCNN

SEED, BATCH, PEAK_LEARNING_RATE = 0, 64, 5e-3
HOUSE_NUMBERS = 10_000


def inputs(images: np.ndarray) -> Tensor:
    """What the model takes: normalised, float32 [B, 3, 32, 32]."""
    return PREPROCESSING.normalise(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)


def train(pictures: Pictures, steps: int) -> SmallCNN:
    torch.manual_seed(SEED)
    model = SmallCNN()
    labels = torch.from_numpy(pictures.labels)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps)
    for _ in track(range(steps), "Training"):
        chosen = torch.randint(len(labels), (BATCH,))
        loss = cross_entropy(model(inputs(pictures.images[chosen.numpy()])), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def accuracy(model: SmallCNN, pictures: Pictures) -> float:
    """The share of right predictions."""
    with torch.inference_mode():
        predicted = torch.cat([model(inputs(part)).argmax(dim=1) for part in batches(pictures.images)])
    return float((predicted.numpy() == pictures.labels).mean())


def batches(images: np.ndarray) -> Sequence[np.ndarray]:
    return np.split(images, range(BATCH, len(images), BATCH))


def write(pictures: Pictures, names: Sequence[str], folder: Path) -> None:
    """CLASS/NUMBER.png for each picture and, where the boxes are known, annotations.json as COCO's."""
    files = [f"{names[label]}/{number:04}.png" for number, label in enumerate(pictures.labels)]
    for file, image in zip(files, pictures.images, strict=True):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / file)
    if pictures.boxes is not None:
        sizes = pictures.boxes[:, 2:] - pictures.boxes[:, :2]
        boxes = np.concatenate([pictures.boxes[:, :2], sizes], axis=1).tolist()
        annotations = {
            "images": [{"id": number, "file_name": file} for number, file in enumerate(files)],
            "categories": [{"id": label, "name": name} for label, name in enumerate(names)],
            "annotations": [
                {"image_id": number, "category_id": label, "bbox": box}
                for number, (label, box) in enumerate(zip(pictures.labels.tolist(), boxes, strict=True))
            ],
        }
        (folder / "annotations.json").write_text(json.dumps(annotations), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the small CNN.")
    parser.add_argument("--cifar10", type=Path, metavar="FOLDER", help="where cifar-10-batches-py lies")
    parser.add_argument("--steps", type=int, default=400, help=f"batches of {BATCH} (default 400)")
    parser.add_argument("--pictures", type=int, default=1000, help="how many test pictures (default 1000)")
    arguments = parser.parse_args()
    if arguments.cifar10 is None:
        name, names = "digits", DIGITS
        seen = house_numbers(min(HOUSE_NUMBERS, arguments.steps * BATCH), "train", SEED)
        unseen = house_numbers(arguments.pictures, "test", SEED)
    else:
        name, names = "cifar10", CIFAR10
        seen, unseen = (cifar10(arguments.cifar10, split) for split in ("train", "test"))
        unseen = Pictures(unseen.images[: arguments.pictures], unseen.labels[: arguments.pictures])
    model = train(seen, arguments.steps)
    save_file(model.state_dict(), f"{name}.safetensors")
    write(unseen, names, Path(name))
    print(f"{accuracy(model, unseen):.1%} of {len(unseen.labels)} test pictures are predicted right.")
    print(f"Wrote {name}.safetensors and the pictures, in {name}/.")


if __name__ == "__main__":
    main()
