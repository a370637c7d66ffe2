"""What a person should know about a data set before anything is trained on it, a sentence each."""

from __future__ import annotations

from ltcore.data.shards.manifest import SKIPPED, Manifest
from ltcore.text import few_words

SELECTED_FROM = "selected_from"
"""Key of the provenance: how many training images there were before a long tail was selected out of them."""
CLASSES_FROM = "classes_from"
"""Key of the provenance: what the classes of nested folders are."""
BROKEN = "broken"
"""Key of the provenance: images that were left out because they cannot be decoded or have no label, path -> problem."""
CARVED = "carved"
"""Key of the provenance: splits that the data did not bring and that were taken out of its training images."""
LABELS = "labels"
"""Key of the provenance: how numbers that are no class numbers were brought to classes."""
LISTED_TWICE = "listed_twice"
"""Key of the provenance: how many rows repeat what another one says of the same image."""
ATTRIBUTE_COUNTS = "attribute_counts"
"""Key of the provenance: split -> images of every attribute, by class, with names where not all classes have all attributes;
too long to be shown."""
SAID = (SKIPPED, BROKEN, CARVED, LABELS, LISTED_TWICE)
"""Keys of the provenance that :func:`remarks` puts into words in full."""


def remarks(manifest: Manifest) -> list[str]:
    """Returns what was skipped, left out or carved, how labels were read, and which classes or tests have no images.

    No number of a run will be about those.
    """
    found, noted = [], manifest.provenance
    before, factor = noted.get(SELECTED_FROM), noted.get("imbalance_factor")
    if isinstance(before, int) and isinstance(factor, int | float):
        used = f"{manifest.split('train').num_samples:,} of {before:,} training images are used"
        counts = sorted(filter(None, manifest.class_counts["train"]))
        apart = (
            f"; in whole images that is {counts[-1]} to {counts[0]}" if counts[-1] > 1.1 * factor * counts[0] else ""
        )
        found.append(f"{used} (data.imbalance_factor={factor:g}{apart}).")
    if labels := noted.get(LABELS):
        found.append(f"labels are {labels}.")
    if repeated := noted.get(LISTED_TWICE):
        found.append(f"images listed again count once; that is {repeated} of the rows.")
    if carved := noted.get(CARVED):
        order = [split for split in ("train", "val", "test") if split in manifest.splits]
        sizes = ", ".join(f"{split} {manifest.split(split).num_samples:,}" for split in order)
        are = "is" if len(carved) == 1 else "are"
        how = f"{' and '.join(carved)} {are} carved out of training, stratified by class and keyed by path"
        found.append(f"{sizes} images; {how} (data.val_per_class says how).")
    found += _unmeasured(manifest)
    if not any(any(counts) for split, counts in manifest.class_counts.items() if split.startswith("test")):
        found.append("there are no test images, so nothing will be tested.")
    return file_remarks(manifest) + [f"{manifest.name}: {sentence}" for sentence in found]


def file_remarks(manifest: Manifest) -> list[str]:
    """Returns which files of the source are not in the data set."""
    found, noted = [], manifest.provenance
    if skipped := noted.get(SKIPPED):
        found.append(f"{manifest.name}: skipped {skipped}.")
    if broken := noted.get(BROKEN):
        one = len(broken) == 1
        some = f"{len(broken):,} image{'' if one else 's'} that cannot be used {'is' if one else 'are'} left out"
        found.append(f"{manifest.name}: {some} (data.max_bad_samples): {few_words(list(broken))}.")
    return found


def _unmeasured(manifest: Manifest) -> list[str]:
    """Returns one sentence on the classes that have no image in val or test, or none."""
    splits_by_classes: dict[tuple[str, ...], list[str]] = {}
    for split, counts in manifest.class_counts.items():
        absent = tuple(name for name, count in zip(manifest.classes, counts, strict=True) if not count)
        if absent and any(counts) and split.startswith(("val", "test")):
            splits_by_classes.setdefault(absent, []).append(split)
    parts = [
        f"{' and '.join(splits)} {'has' if len(splits) == 1 else 'have'} no image of {len(absent):,} of "
        f"{len(manifest.classes):,} classes ({few_words(absent)})"
        for absent, splits in splits_by_classes.items()
    ]
    return [f"{'; '.join(parts)}: their accuracy cannot be measured there."] if parts else []
