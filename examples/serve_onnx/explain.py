"""Prediction and overlay of an image from an exported ``.onnx`` file: onnxruntime, numpy and Pillow, nothing else.

Usage: python explain.py gradcam.onnx photo.jpg overlay.png
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

model, photo, overlay = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
facts = json.loads(session.get_modelmeta().custom_metadata_map["camkit"])["provenance"]
prepared = facts["preprocessing"]

# a number is the shorter side, a pair is height and width; then the middle is cropped
with Image.open(photo) as opened:
    picture = ImageOps.exif_transpose(opened).convert("RGB")
resize = prepared["resize"]
if isinstance(resize, int):
    resize = [int(resize * side / min(picture.size)) for side in (picture.height, picture.width)]
if resize:
    picture = picture.resize((resize[1], resize[0]), Image.Resampling[prepared["interpolation"].upper()])
height, width = prepared["size"]
left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
picture = picture.crop((left, top, left + width, top + height))
pixels = (np.asarray(picture, np.float32) / 255 - prepared["mean"]) / prepared["std"]
image = pixels.transpose(2, 0, 1)[None].astype(np.float32)

# -1 explains the top class
outputs = ["logits", "heatmap", "explained_class"]
logits, heatmap, explained = session.run(outputs, {"image": image, "class_index": np.array([-1])})
odds = np.exp(logits[0] - logits[0].max())
chances = 1 / (1 + np.exp(-logits[0])) if facts["probability"] == "sigmoid" else odds / odds.sum()
names = facts["class_names"] or [str(index) for index in range(len(chances))]
print(f"{names[explained[0]]} {chances[explained[0]]:.3f}")

opacity = Image.fromarray((heatmap[0] * 0.6 * 255).astype(np.uint8))
picture.paste(Image.new("RGB", picture.size, "red"), mask=opacity)
picture.save(overlay)
