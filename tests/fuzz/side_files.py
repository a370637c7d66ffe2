"""Files that somebody writes beside the images: which attribute each has, and what classes are called in words."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

from ltcore.data.glt.given import read_attributes
from ltcore.training.class_words import class_words
from tests.fuzz import mutate
from tests.fuzz.harness import SilentError

ATTRIBUTES = {f"{label}/{n}.png": ("day", "dusk", "night")[n % 3] for label in ("ant", "bee") for n in range(6)}
WORDS = {"n01440764": "tench", "n01443537": "goldfish, or a carp", "17": "great white shark"}
READS = {"attributes": ATTRIBUTES, "words": WORDS}


class SideFiles:
    """As json, csv, tsv and lines of text."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        forms = ("json", "csv", "tsv", "txt")
        self.texts = [(kind, ext, _text(kind, ext, of)) for kind, of in READS.items() for ext in forms]

    def originals(self) -> list[tuple[str, str, bytes]]:
        return [(kind, ext, text.encode()) for kind, ext, text in self.texts]

    def mutated(self, rng: random.Random) -> tuple[str, str, bytes]:
        kind, ext, text = rng.choice(self.texts)
        if ext == "json" and rng.random() < 0.5:
            return kind, ext, json.dumps(mutate.tree(rng, json.loads(text))).encode("utf-8", "surrogatepass")
        if rng.random() < 0.5:
            return kind, ext, mutate.encoded(rng, mutate.text_lines(rng, text))
        return kind, ext, mutate.any_bytes(rng, text.encode())

    def run(self, case: tuple[str, str, bytes]) -> None:
        kind, ext, data = case
        file = self.folder / f"{kind}.{ext}"
        file.write_bytes(data)
        if kind == "words":
            words, _ = class_words(str(file), list(WORDS))
            if len(words) != len(WORDS) or not all(map(str.strip, words)):
                raise SilentError(f"a class is called {words}")
            return
        names, by_path, _ = read_attributes(str(file))
        if not by_path or set(by_path.values()) != set(names):
            raise SilentError(f"attributes {names} of {by_path}")


def _text(kind: str, ext: str, of: Mapping[str, str]) -> str:
    if ext == "json":
        return json.dumps(of, indent=1)
    pairs = [*([("path", "attribute")] if kind == "attributes" and ext != "txt" else []), *of.items()]
    if ext == "csv":
        pairs = [(name, f'"{words}"') for name, words in pairs]
    mark = {"csv": ",", "tsv": "\t", "txt": " "}[ext]
    return "".join(f"{name}{mark}{words}\n" for name, words in pairs)
