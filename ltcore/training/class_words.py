"""What classes are called in words: by their names, or by the file ``model.text.names``, for CLIP's text encoder."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence

from ltcore.errors import ConfigError
from ltcore.limits import MAX_CLASSES_BYTES, MAX_NAME_CHARS, load_json
from ltcore.models.clip_text import TEXT
from ltcore.models.net import ModelConfig
from ltcore.storage import read_bytes
from ltcore.text import few_words
from ltcore.training.weights_file import NAMES_SETTING, NAMES_SHA256, check_exists, whole_file

MOST_UNREADABLE = 0.9
"""Share of classes without a word from which on a classifier does not begin at what is said of them."""
_WORD = re.compile(r"[^\W\d_]{2}")


def class_words(file: str | None, classes: Sequence[str]) -> tuple[Sequence[str], dict[str, str]]:
    """Returns words for the classes in their order, and which file they came from; the names themselves without a file.

    Raises ConfigError for a file that is no table of classes, or that lacks one of these.
    """
    if file is None:
        return classes, {}
    if check_exists(file, NAMES_SETTING).size > MAX_CLASSES_BYTES:  # before it is fetched
        raise ConfigError(
            f"{NAMES_SETTING}={file} has more than {MAX_CLASSES_BYTES} bytes. Leave out what is no class."
        )
    here, digest = whole_file(file, NAMES_SETTING)
    try:
        words = _table(_entries(file, read_bytes(str(here), MAX_CLASSES_BYTES).decode("utf-8-sig")))
    except (ValueError, csv.Error) as error:
        raise ConfigError(f"{NAMES_SETTING}={file} is no table of classes and words ({error}). Correct it.") from error
    missing = [name for name in classes if name not in words]
    if missing:
        raise ConfigError(
            f"{NAMES_SETTING}={file} has no words for {len(missing)} of {len(classes)} classes ({few_words(missing)}): expected "
            "one entry for each, by its name in the data. Add them."
        )
    return [words[name] for name in classes], {"text_names": file, NAMES_SHA256: digest}


def check_words(model: ModelConfig, classes: Sequence[str]) -> str:
    """Returns a warning about classes of which a text encoder knows nothing; '' where there is nothing to warn of.

    Raises ConfigError where they are nearly all, and what ``class_words`` raises.
    """
    found = unreadable(class_words(model.text.names, classes)[0]) if model.head_init == TEXT else []
    if not found:
        return ""
    what = f"{len(found)} of {len(classes)} class names hold no word ({few_words([repr(name) for name in found], 3)})"
    remedy = f"{NAMES_SETTING}=FILE with words for every class, or model.head_init=class_means (it is {TEXT})"
    if len(found) >= MOST_UNREADABLE * len(classes):
        raise ConfigError(f"{what}, and text features of them say nothing: set {remedy}.")
    return f"{what}: text features of them say nothing. Set {remedy}"


def unreadable(words: Iterable[str]) -> list[str]:
    """Returns those without a word, such as '17' or 'n01440764', of which a text encoder knows nothing."""
    return [each for each in words if not _WORD.search(each)]


def _entries(file: str, text: str) -> Iterator[tuple[str, Sequence[object]]]:
    """Yields where an entry stands, and its cells. Raises ValueError or csv.Error where the file has none."""
    if file.endswith(".json"):
        found = load_json(text)
        if not isinstance(found, dict):
            raise ValueError(f"expected an object of class -> words, found a {type(found).__name__}")
        yield from ((f"{name!r:.60}", (name, words)) for name, words in found.items())
    elif file.endswith(".csv"):
        rows = csv.reader(io.StringIO(text, newline=""))
        yield from ((f"line {rows.line_num}", cells) for cells in rows if cells)
    else:
        tabbed = file.endswith(".tsv")
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield f"line {number}", line.split("\t") if tabbed else line.split(maxsplit=1)


def _table(entries: Iterable[tuple[str, Sequence[object]]]) -> dict[str, str]:
    words: dict[str, str] = {}
    for where, cells in entries:
        texts = [cell.strip() for cell in cells if isinstance(cell, str)]
        if len(cells) != 2 or len(texts) != 2 or not all(0 < len(text) <= MAX_NAME_CHARS for text in texts):
            raise ValueError(f"{where}: expected a class and its words, each of 1 to {MAX_NAME_CHARS} characters")
        name, found = texts
        if words.setdefault(name, found) != found:
            raise ValueError(f"{where}: {name[:40]!r} stands there a second time, with other words")
    return words
