"""What lies among people's images and is none, in the few words that are said of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from ltcore.text import few_words

_FIRST = 8
_DOCUMENTS = {
    *("txt", "md", "rst", "pdf", "doc", "docx", "html", "htm", "log", "csv", "tsv", "xls", "xlsx"),
    *("json", "jsonl", "xml", "yaml", "yml", "toml", "py", "ipynb", "sh"),
}
_DOCUMENT_NAMES = {"readme", "license", "licence", "copying", "notice", "authors", "citation", "changelog", "makefile"}
"""Of files without an extension."""


def skipped_words(paths: Sequence[str], no_classes: Sequence[str] = ()) -> str:
    """Counts and names what is skipped, folders that are no classes included; '' where nothing is.

    Args:
        paths: of files, and of hidden folders, which end with ``/``.
        no_classes: folders that hold documents alone.
    """
    if not paths:
        return ""
    folders = sum(path.endswith("/") for path in paths)
    counts = (
        _counted(len(paths) - folders, "file that is no image", "files that are no images"),
        _counted(folders, "hidden folder", "hidden folders"),
    )
    text = f"{' and '.join(filter(None, counts))}: {kinds_words(paths)}"
    if no_classes:
        text += f"; no image in {few_words(no_classes)}, so no class of that name"
    return text


def kinds_words(paths: Iterable[str]) -> str:
    """Names the paths, those of one kind together: ``3 *.xml, 2 .DS_Store, README.md``."""
    kinds: dict[str, list[str]] = {}
    for path in paths:
        kinds.setdefault(_kind(path), []).append(path)
    most_first = sorted((-len(same), kind if len(same) > 1 else same[0]) for kind, same in kinds.items())
    return few_words([name if count == -1 else f"{-count:,} {name}" for count, name in most_first], _FIRST)


def is_document(path: str) -> bool:
    """Tells whether a file is a text or a table by its name, and so no image in a format that is not read."""
    pure = PurePosixPath(path)
    return pure.suffix.lower()[1:] in _DOCUMENTS if pure.suffix else pure.name.lower() in _DOCUMENT_NAMES


def _kind(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.name.startswith("._"):
        return "._*"
    if path.endswith("/"):
        return f"{pure.name}/"
    return f"*{pure.suffix.lower()}" if pure.suffix and not pure.name.startswith(".") else pure.name


def _counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}" if count else ""
