"""Prediction and overlay of an image from an exported ``.pt`` file: torch.jit.load, and no line of the model's code.

Usage: python explain.py gradcam.pt photo.jpg overlay.png
"""

import json
import sys

import numpy as np
import torch
from PIL import Image, ImageOps

model, photo, overlay = sys.argv[1:]
files = {"camkit.json": ""}
explain = torch.jit.load(model, map_location="cpu", _extra_files=files)
facts = json.loads(files["camkit.json"])["provenance"]
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
pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
mean, std = (torch.tensor(prepared[name]).view(-1, 1, 1) for name in ("mean", "std"))

# -1 explains the top class
with torch.inference_mode():
    logits, heatmap, _, explained = explain(((pixels - mean) / std)[None], torch.tensor([-1]))
chances = logits[0].sigmoid() if facts["probability"] == "sigmoid" else logits[0].softmax(dim=0)
names = facts["class_names"] or [str(index) for index in range(len(chances))]
print(f"{names[explained[0]]} {chances[explained[0]]:.3f}")

opacity = Image.fromarray((heatmap[0] * 0.6 * 255).byte().numpy())
picture.paste(Image.new("RGB", picture.size, "red"), mask=opacity)
picture.save(overlay)
