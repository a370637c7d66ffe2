"""Targets: everything that parses other people's data, from one image to a folder of shards."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from ltcore.config.load import load_run
from ltcore.config.recipes import packaged
from ltcore.config.sweep import read_sweep
from ltcore.data.config import DataConfig
from ltcore.data.datasets.coco_objects import read_objects
from ltcore.data.datasets.inputs import Inputs
from ltcore.data.datasets.registry import recognize
from ltcore.data.images.decode import decode_image
from ltcore.data.shards.manifest import MANIFEST
from ltcore.data.shards.reader import ShardStore
from ltcore.data.shards.tar import TarSample, walk
from ltcore.data.shards.validate import check_dataset
from tests.coco import write_coco
from tests.data.small import everything, tiny_png, write_small
from tests.fuzz import mutate
from tests.fuzz.harness import SilentError, Target
from tests.fuzz.side_files import SideFiles
from tests.fuzz.weights import Weights
from tests.tars import picture, pictures, write_tar, write_tars


def _same(found: Any, expected: Any, what: str) -> None:
    if found != expected:
        raise SilentError(f"{what} is not what was written")


def _among(found: bytes, originals: frozenset[bytes], what: str) -> None:
    if found not in originals:
        raise SilentError(f"{what} is none of the images that were written")


def _pixels(data: bytes) -> bytes:
    return decode_image(data, "image").tobytes()


def _samples(place: Path) -> list[tuple[str, bytes]]:
    """Reads all that training would be made of: class and image, the way a user's data become shards."""
    cfg = DataConfig(uri=str(place), val_per_class=1)
    dataset = recognize(cfg.uri)(cfg)  # which holds what was unpacked
    source = dataset.source()
    return [(source.classes[sample.label], sample.image) for rows in source.splits.values() for sample in rows]


LONG = "y" * 80 + "/" + "x" * 80


class Walk:
    """A tar, header by header."""

    def __init__(self, folder: Path) -> None:
        forms = (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)
        names = ("a/0.png", "a/0.cls", "é" * 30 + ".png", f"{LONG}.png", f"{LONG}.cls", "d/")
        for form in forms:
            write_tar(folder / f"{form}.tar", [(name, name.encode() * 40) for name in names], form)
        self.tars = [(folder / f"{form}.tar").read_bytes() for form in forms]

    def originals(self) -> list[bytes]:
        return self.tars

    def mutated(self, rng: random.Random) -> bytes:
        data, other = rng.choice(self.tars), rng.choice(self.tars)
        return mutate.any_bytes(rng, data, other) if rng.random() < 0.3 else mutate.tar_fields(rng, data, other)

    def run(self, case: bytes) -> None:
        for item in walk(io.BytesIO(case), len(case)):
            for member in item.members.values() if isinstance(item, TarSample) else ():
                _same(member.data, case[member.offset : member.offset + member.size], "a member")


class Shards:
    """A data set of ours, of which one file is damaged; ``vouched`` repairs the hashes that the manifest gives."""

    def __init__(self, folder: Path) -> None:
        self.whole, self.folder = folder / "whole", folder / "damaged"
        write_small(self.whole)
        self.files = {path.name: path.read_bytes() for path in self.whole.iterdir()}
        self.images = everything(ShardStore(str(self.whole)))
        self.problems = check_dataset(str(self.whole))

    def originals(self) -> list[tuple[str, bytes, bytes | None]]:
        return [(name, data, None) for name, data in self.files.items()]

    def mutated(self, rng: random.Random) -> tuple[str, bytes, bytes | None]:
        name, vouched = rng.choice(list(self.files)), rng.random() < 0.3
        data = self.files[name]
        if name == MANIFEST:
            raw = mutate.tree(rng, json.loads(data))
            changed = json.dumps(raw).encode() if rng.random() < 0.8 else mutate.any_bytes(rng, data)
        elif name.endswith(".tar"):
            changed = mutate.tar_fields(rng, data, data) if rng.random() < 0.5 else mutate.any_bytes(rng, data)
        elif name.endswith(".npy") or rng.random() < 0.5:
            changed = mutate.any_bytes(rng, data)
        else:
            changed = _other_index(rng, data)
        return name, changed, self._vouched(name, changed) if vouched and name != MANIFEST else None

    def _vouched(self, name: str, changed: bytes) -> bytes:
        raw = json.loads(self.files[MANIFEST])
        (shard,), labels = raw["splits"]["train"]["shards"], raw["splits"]["train"]["labels"]
        sha256 = hashlib.sha256(changed).hexdigest()
        if name == shard["index_path"]:
            shard["index_sha256"] = sha256
        else:
            (shard if name == shard["path"] else labels).update(sha256=sha256, bytes=len(changed))
        return json.dumps(raw).encode()

    def place(self, case: tuple[str, bytes, bytes | None]) -> bool:
        """Writes the damaged data set; tells whether its manifest can know of the damage."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.whole, self.folder)
        name, changed, manifest = case
        (self.folder / name).write_bytes(changed)
        if manifest is not None:
            (self.folder / MANIFEST).write_bytes(manifest)
        return manifest is None and name != MANIFEST and changed != self.files[name]


class Check(Shards):
    """The same for who checks it."""

    def run(self, case: tuple[str, bytes, bytes | None]) -> None:
        known = self.place(case)
        problems = check_dataset(str(self.folder))
        if known and problems == self.problems:
            raise SilentError(f"{case[0]} has changed")


class Store(Shards):
    """The same for who reads its rows."""

    def run(self, case: tuple[str, bytes, bytes | None]) -> None:
        self.place(case)
        store = ShardStore(str(self.folder))
        found = everything(store)
        if case[0] != MANIFEST and case[2] is None:
            _same(found, self.images, "an image")
        for image in found:
            _among(image, frozenset(self.images), "a row")


def _other_index(rng: random.Random, data: bytes) -> bytes:
    """An index with other values, another number of rows, or another schema."""
    table = pq.read_table(io.BytesIO(data))
    name = rng.choice(table.column_names)
    place, values = table.schema.get_field_index(name), table[name].to_pylist()
    kind = rng.randrange(4)
    if kind == 0:
        table = table.take(pa.array(np.zeros(rng.choice((0, 1, 4, 100_000)), np.int64)))
    elif kind == 1:
        table = table.drop_columns([name])
    elif kind == 2:
        table = table.set_column(place, name, pa.array([rng.choice((None, "x" * 10**6, "a\0b", "é"))] * len(values)))
    else:
        values[rng.randrange(len(values))] = rng.choice((None, 0, -1, 2**62, 2**31))
        column = pa.array([value if isinstance(value, int | None) else 7 for value in values], pa.int64())
        table = table.set_column(place, name, column)
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


class Zips:
    """A zip of class folders, imported to the last image."""

    def __init__(self, folder: Path) -> None:
        self.file, self.bases = folder / "photos.zip", list[bytes]()
        images = {f"photos/c{n % 3}/{n}.png": tiny_png(n) for n in range(12)}
        self.images = frozenset(images.values())
        for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
            with zipfile.ZipFile(self.file, "w", kind) as archive:
                for path, data in images.items():
                    archive.writestr(path, data)
            self.bases.append(self.file.read_bytes())

    def originals(self) -> list[bytes]:
        return self.bases[:2]  # the others are of methods that are refused

    def mutated(self, rng: random.Random) -> bytes:
        data, other = rng.choice(self.bases), rng.choice(self.bases)
        return mutate.any_bytes(rng, data, other) if rng.random() < 0.4 else mutate.zip_fields(rng, data, other)

    def run(self, case: bytes) -> None:
        self.file.write_bytes(case)
        for _, image in _samples(self.file):
            _among(image, self.images, "an entry")


class Lists:
    """Lists, tables and json files that name images, gzipped or not."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.original = folder, {}
        rows = [(f"c{n % 3}/{n}.png", n % 3) for n in range(12)]
        for n, (path, _) in enumerate(rows):
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(tiny_png(n))
        self.texts = {
            "list.txt": "".join(f"{path} {label}\n" for path, label in rows),
            "list.csv": "path,label,split\n" + "".join(f"{path},cat {label},train\n" for path, label in rows),
            "list.tsv": "path\tlabel\tattribute\n" + "".join(f'"{path}"\t{label}\tday\n' for path, label in rows),
        }
        coco = {
            "images": [{"id": n, "file_name": path} for n, (path, _) in enumerate(rows)],
            "annotations": [{"id": n, "image_id": n, "category_id": label} for n, (_, label) in enumerate(rows)],
            "categories": [{"id": label, "name": f"cat {label}"} for label in range(3)],
        }
        part = {"label": dict(rows), "attribute": {path: label % 2 for path, label in rows}}
        self.trees = {
            "coco.json": coco,
            "glt.json": {"train": part, "val": {"label": {}}, "id2cat": {str(n): f"cat {n}" for n in range(3)}},
        }

    def originals(self) -> list[tuple[str, bytes, bool]]:
        names = [*self.texts, *self.trees]
        plain = [(name, self._text(name).encode(), False) for name in names]
        return [*plain, *((f"{name}.gz", gzip.compress(data, mtime=0), True) for name, data, _ in plain)]

    def _text(self, name: str) -> str:
        return self.texts.get(name) or json.dumps(self.trees[name])

    def mutated(self, rng: random.Random) -> tuple[str, bytes, bool]:
        name = rng.choice([*self.texts, *self.trees])
        if name in self.trees:
            data = json.dumps(mutate.tree(rng, self.trees[name])).encode()
            data = mutate.any_bytes(rng, data) if rng.random() < 0.2 else data
        elif rng.random() < 0.5:
            data = mutate.encoded(rng, mutate.text_lines(rng, self.texts[name]))
        else:
            data = mutate.any_bytes(rng, self.texts[name].encode())
        if rng.random() < 0.7:
            return name, data, False
        return f"{name}.gz", mutate.any_bytes(rng, gzip.compress(self._text(name).encode(), mtime=0)), True

    def run(self, case: tuple[str, bytes, bool]) -> None:
        name, data, is_packed = case
        (self.folder / name).write_bytes(data)
        _samples(self.folder / name)
        if is_packed:
            _same(gzip.decompress(data), self._text(name.removesuffix(".gz")).encode(), "the unpacked text")


class PredictLists:
    """A list of images to predict, and the images that it names."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "list.txt"
        for n in range(4):
            (folder / f"{n}.png").write_bytes(tiny_png(n))
        self.text = "".join(f"{folder}/{n}.png {n % 2}\n" for n in range(4))

    def originals(self) -> list[bytes]:
        return [self.text.encode()]

    def mutated(self, rng: random.Random) -> bytes:
        text = mutate.text_lines(rng, self.text)
        return mutate.encoded(rng, text) if rng.random() < 0.5 else mutate.any_bytes(rng, self.text.encode())

    def run(self, case: bytes) -> None:
        self.file.write_bytes(case)
        for item in Inputs([str(self.file)], ("cat", "dog")):
            _pixels(item.read())


class Parquets:
    """Parquet of the Hub's kind, whose pages have checksums, with images inside or beside it."""

    def __init__(self, folder: Path) -> None:
        self.file, self.bases = folder / "train.parquet", list[bytes]()
        images = [tiny_png(n) for n in range(12)]
        self.images = frozenset(images)
        features = {"label": {"names": ["ant", "bee", "cat"], "_type": "ClassLabel"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        for n, image in enumerate(images):
            (folder / f"{n}.png").write_bytes(image)
        held = [{"bytes": image, "path": f"{n}.png"} for n, image in enumerate(images)]
        labels = pa.array([n % 3 for n in range(12)])
        for column, codec in ((held, "snappy"), (held, "zstd"), ([f"{n}.png" for n in range(12)], "gzip")):
            table = pa.table({"image": pa.array(column), "label": labels}).replace_schema_metadata(metadata)
            out = io.BytesIO()
            pq.write_table(table, out, compression=codec, row_group_size=5, write_page_checksum=True)
            self.bases.append(out.getvalue())

    def originals(self) -> list[bytes]:
        return self.bases

    def mutated(self, rng: random.Random) -> bytes:
        data, other = rng.choice(self.bases), rng.choice(self.bases)
        if rng.random() < 0.6:  # of the footer, where the structure is
            size = int.from_bytes(data[-8:-4], "little")
            start = len(data) - 8 - size
            footer = mutate.any_bytes(rng, data[start:-8], other[-8 - size : -8])
            return data[:start] + footer + len(footer).to_bytes(4, "little") + data[-4:]
        return mutate.any_bytes(rng, data, other)

    def run(self, case: bytes) -> None:
        self.file.write_bytes(case)
        for _, image in _samples(self.file):
            _among(image, self.images, "a row")


class WebTars:
    """Tars of others, gzipped or not, with a file of class names beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_tars(folder / "train-%06d.tar", pictures(12, 3))
        self.tar = (folder / "train-000000.tar").read_bytes()
        self.pixels = frozenset(_pixels(picture(n % 3, n)) for n in range(12))
        self.info = {"features": {"cls": {"names": ["ant", "bee", "cat"], "_type": "ClassLabel"}}}
        rows = [(f"{n:03d}.{ext}", data) for n in range(12) for ext, data in (("png", picture(n % 3, n)), _json(n))]
        write_tar(folder / "json.tar", rows, tarfile.PAX_FORMAT)
        self.json_tar = (folder / "json.tar").read_bytes()
        (folder / "json.tar").unlink()

    def originals(self) -> list[dict[str, bytes]]:
        tars = [{"train-000000.tar": data} for data in (self.tar, self.json_tar)]
        return [
            *tars,
            {"train-000000.tar.gz": gzip.compress(self.tar, mtime=0)},
            {**tars[0], "classes.txt": b"ant\nbee\ncat"},
        ]

    def mutated(self, rng: random.Random) -> dict[str, bytes]:
        data, other = rng.sample((self.tar, self.json_tar), 2)
        kind = rng.randrange(6)
        if kind == 0:
            info = json.dumps(mutate.tree(rng, self.info)).encode()
            return {"train-000000.tar": data, "dataset_info.json": info}
        if kind == 1:
            names = mutate.encoded(rng, mutate.text_lines(rng, "ant\nbee\ncat"))
            return {"train-000000.tar": data, "classes.txt": names}
        if kind == 2:
            return {"train-000000.tar.gz": mutate.any_bytes(rng, gzip.compress(data, mtime=0))}
        changed = mutate.tar_fields(rng, data, other) if rng.random() < 0.6 else mutate.any_bytes(rng, data, other)
        return {"train-000000.tar": changed}

    def run(self, case: dict[str, bytes]) -> None:
        for path in self.folder.iterdir():
            path.unlink()
        for name, data in case.items():
            (self.folder / name).write_bytes(data)
        for _, image in _samples(self.folder):
            _among(_pixels(image), self.pixels, "a sample")


def _json(number: int) -> tuple[str, bytes]:
    return "json", json.dumps({"label": number % 3, "caption": "x"}).encode()


class Images:
    """Images of all formats that are opened, in the kinds that cameras and programs write."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        rgb = Image.fromarray(rng.integers(0, 256, (24, 16, 3), np.uint8))
        deep = Image.fromarray(rng.integers(0, 65536, (8, 8), np.uint16))
        exif = Image.Exif()
        exif[0x0112] = 6
        kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
            *((rgb, "PNG", {}), (rgb.convert("P"), "PNG", {}), (deep, "PNG", {})),
            *((rgb, "JPEG", {"exif": exif}), (rgb, "JPEG", {"progressive": True}), (rgb.convert("CMYK"), "JPEG", {})),
            *((rgb, "WEBP", {}), (rgb, "WEBP", {"lossless": True}), (rgb.convert("P"), "GIF", {})),
            *((rgb, "BMP", {}), (rgb, "TIFF", {}), (rgb, "TIFF", {"compression": "tiff_lzw"}), (deep, "TIFF", {})),
            *((rgb, "TIFF", {"compression": "jpeg"}), (rgb, "TIFF", {"compression": "tiff_adobe_deflate"})),
            *((rgb, "PPM", {}), (rgb.convert("1"), "PPM", {}), (rgb, "AVIF", {}), (rgb, "MPO", {})),
            (rgb, "GIF", {"save_all": True, "append_images": [rgb.rotate(90)]}),
        ]
        text = b"\n2 2\n# as text\n255\n" + b"1 20 200 " * 4
        self.bases = [_saved(image, form, options) for image, form, options in kinds]
        self.bases += [
            *(b"P" + kind + text for kind in (b"2", b"3")),
            b"P1 3 2\n010 #\n110",
            b"P6 2 2 99\n" + bytes(12),
        ]

    def originals(self) -> list[bytes]:
        return self.bases

    def mutated(self, rng: random.Random) -> bytes:
        return mutate.any_bytes(rng, rng.choice(self.bases), rng.choice(self.bases))

    def run(self, case: bytes) -> None:
        decode_image(case, "image")


def _saved(image: Image.Image, form: str, options: Mapping[str, Any]) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


class Pngs:
    """PNGs, whose chunks have checksums: other pixels are never taken for the original's."""

    def __init__(self, folder: Path) -> None:
        self.bases = [picture(n % 3, n) for n in range(8)]
        self.pixels = frozenset(map(_pixels, self.bases))

    def originals(self) -> list[bytes]:
        return self.bases

    def mutated(self, rng: random.Random) -> bytes:
        return mutate.any_bytes(rng, rng.choice(self.bases), rng.choice(self.bases))

    def run(self, case: bytes) -> None:
        _among(_pixels(case), self.pixels, "a PNG")


class Recipes:
    """Recipes and sweep files, and keys of the command line."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "own.yaml"
        self.texts = {kind: [file.read_text() for file in packaged(kind).values()] for kind in ("recipe", "sweep")}
        self.keys = [f"{key}={value}" for key, value in _flat(_plain(load_run("digits_glt_lpa_dro_ifl").to_dict()))]

    def originals(self) -> list[tuple[str, Any]]:
        return [(kind, text.encode()) for kind, texts in self.texts.items() for text in texts[:3]]

    def mutated(self, rng: random.Random) -> tuple[str, Any]:
        kind = rng.choice(("recipe", "recipe", "sweep", "override"))
        if kind == "override":
            key, _, value = mutate.text_lines(rng, rng.choice(self.keys)).partition("=")
            return kind, {key: rng.choice((value, rng.choice(mutate.TEXTS)))}
        text = rng.choice(self.texts[kind])
        if rng.random() < 0.5:
            changed = yaml.safe_dump(mutate.tree(rng, yaml.safe_load(text)), allow_unicode=True)
            return kind, changed.encode("utf-8", "surrogatepass")
        return kind, mutate.encoded(rng, mutate.text_lines(rng, text))

    def run(self, case: tuple[str, Any]) -> None:
        kind, value = case
        if kind == "override":
            load_run("digits_glt_lpa_dro_ifl", value).to_dict()
            return
        self.file.write_bytes(value)
        if kind == "sweep":
            read_sweep(str(self.file)).size  # noqa: B018 - counts the trials
        else:
            load_run(str(self.file)).to_dict()


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _flat(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(tree, dict):
        return [(prefix, tree)]
    return [pair for key, value in tree.items() for pair in _flat(value, f"{prefix}.{key}" if prefix else key)]


class Coco:
    """Annotation files of MSCOCO and COCO Attributes."""

    def __init__(self, folder: Path) -> None:
        _, notes = write_coco(folder)
        self.notes = Path(notes)
        self.files = {path.name: path.read_bytes() for path in self.notes.iterdir()}

    def originals(self) -> list[tuple[str, bytes]]:
        return list(self.files.items())

    def mutated(self, rng: random.Random) -> tuple[str, bytes]:
        name = rng.choice(list(self.files))
        data = self.files[name]
        if rng.random() < 0.7:
            return name, json.dumps(mutate.tree(rng, json.loads(data))).encode()
        return name, mutate.any_bytes(rng, data)

    def run(self, case: tuple[str, bytes]) -> None:
        for name, data in {**self.files, case[0]: case[1]}.items():
            (self.notes / name).write_bytes(data)
        instances = [self.notes / name for name in sorted(self.files) if name.startswith("instances")]
        read_objects(instances, self.notes / "cocottributes.json")


TARGETS: Mapping[str, Callable[[Path], Target]] = {
    "walk": Walk,
    "check": Check,
    "store": Store,
    "zip": Zips,
    "list": Lists,
    "predict list": PredictLists,
    "parquet": Parquets,
    "webdataset": WebTars,
    "image": Images,
    "png": Pngs,
    "recipe": Recipes,
    "coco": Coco,
    "weights": Weights,
    "side files": SideFiles,
}
