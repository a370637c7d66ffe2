"""What a person should know about a data set before anything is trained on it, a sentence each."""

from __future__ import annotations

from collections.abc import Iterable

from ltcore.data.shards.manifest import Manifest

_FIRST = 5
SELECTED_FROM = "selected_from"
"""Key of the provenance: how many training images there were before a long tail was selected out of them."""

LABELS = "labels"
"""Key of the provenance: how numbers that are no class numbers were brought to classes."""
LISTED_TWICE = "listed_twice"
"""Key of the provenance: how many rows repeat what another one says of the same image."""


def remarks(manifest: Manifest) -> list[str]:
    """Returns how many training images were left out, how labels were read, and which classes or tests have no images.

    No number of a run will be about those.
    """
    found = []
    before, factor = (manifest.provenance.get(key) for key in (SELECTED_FROM, "imbalance_factor"))
    if isinstance(before, int) and isinstance(factor, int | float):
        used = f"{manifest.split('train').num_samples:,} of {before:,} training images are used"
        found.append(f"{manifest.name}: {used} (data.imbalance_factor={factor:g}).")
    if labels := manifest.provenance.get(LABELS):
        found.append(f"{manifest.name}: labels are {labels}.")
    if repeated := manifest.provenance.get(LISTED_TWICE):
        found.append(f"{manifest.name}: images listed again count once; that is {repeated} of the rows.")
    for split, counts in manifest.class_counts.items():
        absent = [name for name, count in zip(manifest.classes, counts, strict=True) if not count]
        if absent and any(counts) and split.startswith(("val", "test")):
            of = f"no image of {len(absent)} of {len(counts)} classes"
            found.append(f"{manifest.name}: {split} has {of} ({_few(absent)}), so it says nothing about them.")
    if not any(any(counts) for split, counts in manifest.class_counts.items() if split.startswith("test")):
        found.append(f"{manifest.name}: there are no test images, so nothing will be tested.")
    return found


def _few(names: Iterable[str]) -> str:
    shown = [name if name.isprintable() else ascii(name)[1:-1] for name in names]
    return ", ".join(shown[:_FIRST]) + (", ..." if len(shown) > _FIRST else "")
