"""``shards glt``: from the command line's answers to the shards of a generalized long-tailed benchmark."""

from __future__ import annotations

import shlex
import statistics
import time

from rich.table import Table

from ltcore.cli.args import GltArgs
from ltcore.cli.bar import progress
from ltcore.cli.engine import engine_of
from ltcore.cli.entry import say
from ltcore.cli.make_shards import refuse_inside, source_config
from ltcore.data.glt.build import Plan
from ltcore.data.glt.pool import Pool, open_pool
from ltcore.data.glt.workspace import WITHOUT_ATTRIBUTE, build
from ltcore.data.shards.remarks import remarks
from ltcore.reporting.terminal import Terminal
from ltcore.storage import is_local
from ltcore.text import counted, duration, few_words


def make_glt(args: GltArgs) -> int:
    """Builds the benchmark, or continues an interrupted build of it; beside a local one it puts pictures of it."""
    began = time.monotonic()
    refuse_inside(args.source, args.target, args.lists)
    cfg = source_config(args, args.source, subset_seed=args.choices.seed)
    pool, unused = open_pool(cfg, args.choices, lists=args.lists, progress=say)
    say(
        f"{pool.name}: {counted(len(pool.items), 'image')} of {counted(len(pool.classes), 'class')}, {_pool_words(pool, unused)}"
    )
    discover = None
    with engine_of(args.engine, say, debug=args.debug)(len(pool.items)) as run:
        if args.choices.discovery is not None:
            from ltcore.training.discover import discovery_of

            discover = discovery_of(args.choices.discovery, args.choices.seed, run)
        plan, made = build(
            pool,
            args.choices,
            args.target,
            run,
            bar=progress,
            discover=discover,
            max_bad_samples=args.max_bad_samples,
            progress=say,
        )
    if unknown := made.provenance.get(WITHOUT_ATTRIBUTE):
        say(f"{unknown:,} images were left out because nothing says their attribute")
    for remark in remarks(made):
        say(remark)
    show(plan, made.attributes)
    if is_local(args.target):
        from ltcore.reporting.data_pictures import write_pictures

        pictures = f"{args.target.rstrip('/')}-pictures"
        write_pictures(args.target, pictures)
        print(f"Pictures: {pictures}")
    else:
        print(f"Pictures: none in an object store; ltcore shards pictures {shlex.quote(args.target)} makes them here")
    print(f"Benchmark: {args.target}   ({duration(time.monotonic() - began)}, data {made.hash[:12]})")
    return 0


def _pool_words(pool: Pool, unused: dict[str, int]) -> str:
    words = f"of the split{'s' if len(pool.provenance['pool']) > 1 else ''} {', '.join(pool.provenance['pool'])}"
    left = ", ".join(f"{split} {count:,}" for split, count in unused.items())
    return f"{words} (not used: {left}; --pool chooses)" if left else words


def show(plan: Plan, attributes: tuple[str, ...]) -> None:
    """Prints the splits, and what was chosen where nothing was given."""
    sizes, terminal = plan.sizes, Terminal()
    there_CA = plan.pool.counts() > 0
    title = f"{plan.pool.name}-glt: {len(plan.pool.classes):,} classes, {counted(len(attributes), 'attribute')}"
    if not there_CA.all():
        fewest, most = int(there_CA.sum(1).min()), int(there_CA.sum(1).max())
        title += f", {fewest:,}{f' to {most:,}' if most > fewest else ''} in each class"
    table = Table(title=title)
    table.add_column("split")
    for name in ("images", "per class", "class imbalance", "inside classes"):
        table.add_column(name, justify="right")
    for split in plan.splits:
        counts_CA = plan.counts(split)
        by_C = counts_CA.sum(1)
        low, high = int(by_C.min()), int(by_C.max())
        inside = statistics.median(
            counts_A.max() / max(1, counts_A[there_A].min())
            for counts_A, there_A in zip(counts_CA, there_CA, strict=True)
        )
        spread = f"{high:,}" if low == high else f"{high:,}..{low:,}"
        table.add_row(split, f"{by_C.sum():,}", spread, f"{high / low:.4g}" if low else "-", f"{inside:.3g}")
    terminal.print(table)
    terminal.print("Imbalance is largest over smallest class, and inside classes over attributes, of the median class.")
    quotas = ":".join(map(str, sizes.quotas))
    tailed, equal = "train, train_cbl and test_cbl", "val and test_gbl"
    if sizes.val_C:
        tailed, equal = "train, train_cbl, val and test_cbl", "test_gbl"
    terminal.print(f"Attributes: {few_words(attributes)}, {quotas} in {tailed}; equal in {equal}.")
    train, overlap = len(plan.splits["train"]), plan.overlap
    terminal.print(
        f"train and train_cbl share {counted(overlap, 'image')} ({100 * overlap / train:.0f} % of train); nothing else overlaps."
    )
