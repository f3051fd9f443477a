"""Make the data that ships with the demo: the digits' array and a dozen ready scenes.

Usage: python examples/digit_scenes/make_data.py

This script alone needs scikit-learn, which carries a copy of the digits.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from camkit_adapters.demo import scenes

SPLIT_SEED = 0
TEST_SHARE = 0.3
READY_SEED = 2024
# Chosen by eye out of the first eighty.
READY_SCENES = (43, 24, 75, 41, 55, 53, 31, 77, 68, 5, 35, 21)
IMAGES = scenes.DIGITS_PATH.with_name("images")


def main() -> None:
    write_digits(scenes.DIGITS_PATH)
    write_ready_scenes(IMAGES)


def write_digits(path: Path) -> None:
    """Write images uint8 [1797, 8, 8] (0 to 16), labels uint8 [1797] and is_test bool [1797]."""
    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    _, test_indices = train_test_split(
        np.arange(len(labels)), test_size=TEST_SHARE, stratify=labels, random_state=SPLIT_SEED
    )
    is_test = np.isin(np.arange(len(labels)), test_indices)
    np.savez_compressed(path, images=images, labels=labels, is_test=is_test)


def write_ready_scenes(folder: Path) -> None:
    """Write a dozen scenes of the test split as PNG, and their digits to boxes.json."""
    folder.mkdir(exist_ok=True)
    made = scenes.generate(max(READY_SCENES) + 1, "test", READY_SEED, digit_counts=(2, 3))
    boxes = {}
    for number, index in enumerate(READY_SCENES, start=1):
        scene = made[index]
        name = f"scene-{number:02}.png"
        cv2.imwrite(str(folder / name), cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR))
        boxes[name] = [
            {
                "label": scenes.CLASS_NAMES[digit.label],
                "class_index": digit.label,
                "box": list(digit.box),
            }
            for digit in scene.digits
        ]
    (folder / "boxes.json").write_text(json.dumps(boxes, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
