"""The bounds of what is read from outside: data of others, and files in which anything may stand.

No input decides how much memory or time it takes; it is refused in a sentence, before it is held, where it is beyond these.
What a person's own data need lies far below: the largest known are named beside a number where they come near.

===================  ==============================================================================================
what is read         what bounds it
===================  ==============================================================================================
image                MAX_IMAGE_BYTES, MAX_PIXELS, MAX_SCANS, LARGE_PIXELS_AT_ONCE; formats: data/images/decode.py; where PIL is
                     slow MAX_SLOW_PIXELS, MAX_SLOW_BYTES; of a PPM MAX_PPM_HEADER_BYTES, MAX_PPM_COMMENTS
folder               MAX_DEPTH, MAX_PATH_CHARS, MAX_FOLDERS, MAX_FILES; files that are not plain are not opened
file fetched whole   MAX_FETCHED_BYTES, and what is free on the disk
zip                  as a folder; MAX_DIRECTORY_BYTES, MAX_RATIO for each entry and for all; stored or deflated
tar of others        MAX_EXTENDED_BYTES, MAX_TARS, MAX_TAR_DEPTH, MAX_ROWS; of a sample MAX_SAMPLE_FILES, MAX_KEY_CHARS,
                     MAX_LABEL_BYTES, MAX_SAMPLE_JSON_BYTES; MAX_RATIO where it is gzipped
list, table, json    MAX_LIST_BYTES unpacked, MAX_ROWS, MAX_CELL_CHARS, MAX_JSON_VALUES
parquet              MAX_FOOTER_BYTES, MAX_COLUMN_CHUNKS, MAX_ROWS, no more rows than bytes, MAX_RATIO for a column;
                     MAX_CELL_CHARS
annotations of COCO  MAX_OBJECTS, MAX_ATTRIBUTES; MAX_ENTRY_BYTES and MAX_ENTRY_DEPTH of an entry, of which one is held at a time;
                     MAX_NAME_CHARS
classes, attributes  MAX_CLASSES of MAX_NAME_CHARS; files that name them MAX_CLASSES_BYTES
manifest             MAX_MANIFEST_BYTES, MAX_JSON_VALUES, MAX_COUNT, MAX_CLASSES
index of a shard     MAX_INDEX_BYTES_OF_ROW for each row that the manifest gives; a row fills MIN_BYTES_OF_ROW of its tar
checkpoint           MAX_MANIFEST_BYTES, MAX_JSON_VALUES
record of ours       MAX_RECORD_BYTES, MAX_RECORD_VALUES; metrics.jsonl MAX_METRICS_BYTES, of a row MAX_ROW_VALUES
claim on a run       MAX_CLAIM_BYTES
recipe, sweep file   MAX_RECIPE_BYTES, MAX_RECIPE_NODES with all aliases unfolded, MAX_RECIPE_DEPTH; so is the
                     configuration of a cluster that `ray up` leaves
key on a command     MAX_TABLE_CHARS; MAX_TRIALS of a sweep
weights              MAX_TENSOR_NAMES_BYTES; no more bytes unpacked than the file has
memory of an import  of encoded images HELD_BYTES on their way, as many in work, and one image beyond them; of decoded
                     ones LARGE_PIXELS_AT_ONCE, and LARGE_PIXELS for each thread; all of it for each process
===================  ==============================================================================================

``tests/test_every_bound.py`` strikes at each of them in memory and time, ``tests/data/datasets/test_bounds.py`` and
``test_bound_edges.py`` at its edges, ``tests/fuzz`` at all that nobody thought of.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from ltcore.errors import DataError

T = TypeVar("T")

MAX_PIXELS = 64 * 2**20
"""Of an image, by its header, before anything is decoded."""
LARGE_PIXELS, LARGE_PIXELS_AT_ONCE = 4 * 2**20, 128 * 2**20
"""Images with more pixels than the first are decoded one beside another only up to the second, over all threads of a process.
A decoder holds some ten bytes for a pixel, that is less than 1.5 GiB for all of these."""
MAX_SCANS = 100
"""Of a progressive JPEG, each over all pixels: encoders write about ten, and time grows with every one."""
MAX_SLOW_PIXELS, MAX_SLOW_BYTES = 8 * 2**20, 2**27
"""Of an image that PIL decodes in Python, a second or two for a million pixels: PPM as text or with another white than 255 or
65535, and BMP with run lengths."""
MAX_PPM_HEADER_BYTES, MAX_PPM_COMMENTS = 2**16, 1000
"""Of a PPM's header, which it reads byte by byte, and of one as text, all of which it copies for each comment."""
MAX_IMAGE_BYTES = 8 * MAX_PIXELS
"""Of an image file: those of the largest image, uncompressed and 16 bits deep."""
HELD_BYTES = 64 * 2**20
"""Of encoded images that an import holds in one place: fetched ahead, decoded, or read from tars by all threads."""

PACKED_BYTES, MAX_RATIO = 16 * 2**20, 200
"""What unpacks to more than the first and to more than the second times its packed size is a bomb rather than pictures."""
MAX_DIRECTORY_BYTES = 2**28
"""Of the list of files in a zip: two million entries."""
MAX_FETCHED_BYTES = 2**41
"""Of a file that is fetched whole, such as a zip or weights. ImageNet-21K has 1.3 TB. Where its size is not told, half of what is
free on the disk is the most."""
MAX_DEPTH, MAX_PATH_CHARS, MAX_FOLDERS = 64, 4096, 1_000_000
"""Folders in each other, characters of a path, which file systems do not take longer, and folders of a place that is listed."""
MAX_FILES = 2**25
"""Of a place that is listed, twice MAX_ROWS: beside each image may lie a file about it."""

MAX_TARS, MAX_TAR_DEPTH = 100_000, 4
"""Tars of a data set, and folders below the one that was named in which they are looked for."""
MAX_EXTENDED_BYTES = 2**16
"""Of one header of a tar that extends the next: names and times take some hundred."""
MAX_SAMPLE_FILES, MAX_KEY_CHARS, MAX_LABEL_BYTES, MAX_SAMPLE_JSON_BYTES = 1000, 2**10, 2**10, 2**20
"""Of one sample in a tar."""
MAX_DIGITS = 18
"""Of a whole number: any such number fits 64 bits."""

MAX_LIST_BYTES = 2**28
"""Of a list, table or json file, unpacked. iNaturalist 2018 has 120 MB."""
MAX_ROWS = 2**24
"""Of a list, table or parquet, or samples in tars: images of a data set. ImageNet-21K has 14 million."""
MAX_CELL_CHARS = 4096
"""Of a cell, of which the longest is a path."""
MAX_JSON_VALUES = 2**25
"""Of a json file, each of which takes some 60 bytes in memory."""
MAX_COLUMN_CHUNKS = 2**20
"""Row groups times columns of a parquet file, which its footer describes one by one."""
MAX_FOOTER_BYTES = 2**23
"""Of a parquet file: those of two million images, a hundred in a row group. In memory it may be 220 times as large."""
MAX_OBJECTS, MAX_ATTRIBUTES = 2**21, 2**12
"""At least twice what MSCOCO and COCO Attributes have."""
MAX_ENTRY_BYTES, MAX_ENTRY_DEPTH = 2**20, 32
"""Of one entry of their files, or of a text in these. A mask of 640 x 480 pixels that change one by one would have 0.9 MB."""

MAX_CLASSES, MAX_NAME_CHARS, MAX_CLASSES_BYTES = 10**6, 2**10, 2**24
MAX_MANIFEST_BYTES = 2**27
"""Of 10^5 shards, about 60 MB."""
MAX_COUNT = 2**60
"""More bytes or samples than there are: a number of more digits would fail where it is used."""
MAX_INDEX_BYTES, MAX_INDEX_BYTES_OF_ROW = 2**16, 2 * MAX_KEY_CHARS
"""An index has no more bytes than the first and the second for each of its rows."""
MIN_BYTES_OF_ROW = 1024
"""A sample in a tar has a header and a block of data at least."""

MAX_RECORD_BYTES, MAX_RECORD_VALUES = 2**27, 2**22
"""Of run.json, sweep.json and other files of ours: those of a sweep with MAX_TRIALS."""
MAX_METRICS_BYTES, MAX_ROW_VALUES = 2**27, 2**14
"""Of metrics.jsonl: 10,000 epochs with 400 metrics each; and of one of its rows."""
MAX_CLAIM_BYTES = 2**12
"""Of what a process says of itself where it works on a run: some 300 bytes, and a name of its machine of up to 253."""

MAX_RECIPE_BYTES, MAX_RECIPE_NODES, MAX_RECIPE_DEPTH = 2**18, 2**15, 32
"""A recipe with a weight for each of 8,142 classes has 2^17 bytes and 2^14 nodes."""
MAX_TABLE_CHARS = 2**20
"""Of a table of classes on a command line: some 40,000 classes."""
MAX_TRIALS = 10**5
"""Of a sweep."""
MAX_TENSOR_NAMES_BYTES = 2**23
"""Of what a file of weights says of its tensors, each of which becomes an object: some 10^5 of them."""


def load_json(data: str | bytes, most_values: int | None = None) -> Any:
    """Parses JSON from outside. Raises ValueError where it is none, nested too deeply, or has too many values.

    The most are ``most_values``, for None MAX_JSON_VALUES. ``[[],[],...`` takes twenty times as many bytes in memory as in a
    file.
    """
    most = MAX_JSON_VALUES if most_values is None else most_values
    commas = (",", "[", "{") if isinstance(data, str) else (b",", b"[", b"{")
    if (values := sum(map(data.count, commas))) > most:  # type: ignore[arg-type]  # of one kind with the data
        raise ValueError(f"about {values} values, expected at most {most}")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def at_most(found: Iterable[T], most: int, where: str, what: str) -> Iterator[T]:
    """Yields what is found of a data set. Raises DataError where it is more."""
    for number, one in enumerate(found, 1):
        if number > most:
            raise too_many(most, where, what)
        yield one


def too_many(most: int, where: str, what: str) -> DataError:
    """Makes the error for a data set that has more than ``most`` rows or files."""
    return DataError(f"{where} has more than {most:,} {what}. Make shards of its parts.")
