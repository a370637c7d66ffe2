"""A small MSCOCO with attributes: images of both parts, instances files, and COCO Attributes as json."""

import json

import numpy as np
from PIL import Image

SIDE = 64
CATEGORIES = {7: "fire hydrant", 3: "cat", 9: "dog"}
COUNTS = {7: 12, 3: 40, 9: 24}
ATTRIBUTES = ("wet", "red", "furry", "young", "old")


def write_coco(folder, seed=0):
    """Writes ``images`` and ``annotations`` below ``folder``; one object in each image, of a plain color."""
    rng = np.random.default_rng(seed)
    images, notes = folder / "images", folder / "annotations"
    parts = {"train2014": [], "val2014": []}
    scores, annotation_of = {}, {}
    notes.mkdir(parents=True)
    for part in parts:
        (images / part).mkdir(parents=True)
    for number, category in enumerate(c for c, n in COUNTS.items() for _ in range(n)):
        part = ("train2014", "val2014")[number % 2]
        color = rng.integers(30, 226, 3, np.uint8)
        pixels = np.broadcast_to(color, (SIDE, SIDE, 3))
        Image.fromarray(np.ascontiguousarray(pixels)).save(images / part / f"COCO_{part}_{number:012d}.jpg")
        box = [4.0, 6.5, 20.0, 30.0]
        parts[part].append({"id": 1000 + number, "image_id": number, "category_id": category, "bbox": box, "area": 1.5})
        scores[str(number)] = np.round(rng.random(len(ATTRIBUTES)) ** (1 + np.arange(len(ATTRIBUTES))), 3).tolist()
        annotation_of[str(number)] = 1000 + number
    for part, annotations in parts.items():
        tree = {
            "images": [{"id": note["image_id"]} for note in annotations],
            "annotations": [*annotations, {"id": 5, "image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1]}],
            "categories": [{"id": number, "name": name} for number, name in CATEGORIES.items()],
        }
        (notes / f"instances_{part}.json").write_text(json.dumps(tree))
    tree = {
        "attributes": [{"id": 10 + a, "name": name, "type": "x"} for a, name in enumerate(ATTRIBUTES)][::-1],
        "patch_id_to_ann_id": annotation_of,
        "ann_vecs": scores,
        "split": {},
    }
    (notes / "cocottributes.json").write_text(json.dumps(tree))
    return str(images), str(notes)
