"""The command lines of ``export``, ``card`` and ``retrieve``."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ltcore.cli.args import CardArgs, ExportArgs, RetrieveArgs, absolute
from ltcore.cli.parsers import add_prediction_flags, command_parser, take_reading
from ltcore.cli.values import count

MOST_NEIGHBORS, MOST_PROTOTYPES = 64, 256
"""That one page shows."""


def read_export(doc: str | None, argv: Sequence[str] | None = None, prog: str | None = None) -> ExportArgs:
    """Reads the command line of ``export``."""
    parser = command_parser(doc, prog)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint or run directory, path or URI")
    parser.add_argument(
        "file",
        metavar="FILE.onnx|FILE.pt2",
        help="ONNX, or PyTorch's own format: uint8 images [B, 3, S, S] in, logits out, normalization inside; a model card "
        "FILE.md is written beside it",
    )
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGES",
        help="image files or folders on which the file is compared with the checkpoint",
    )
    add_prediction_flags(parser, tta=("none", "flip"))  # a file takes one canvas of each image
    args = parser.parse_intermixed_args(argv)
    return ExportArgs(
        checkpoint=args.checkpoint,
        file=args.file,
        images=tuple(args.images),
        posthoc_tau=args.posthoc_tau,
        tta=args.tta,
    )


def read_card(doc: str | None, argv: Sequence[str] | None = None, prog: str | None = None) -> CardArgs:
    """Reads the command line of ``card``."""
    parser = command_parser(doc, prog)
    parser.add_argument("run", metavar="RUN", help="run directory, path or URI")
    parser.add_argument("--output", metavar="FILE.md", help="where the card goes (default: the standard output)")
    args = parser.parse_args(argv)
    return CardArgs(run=args.run, output=args.output)


def read_retrieve(doc: str | None, argv: Sequence[str] | None = None, prog: str | None = None) -> RetrieveArgs:
    """Reads the command line of ``retrieve``."""
    parser = command_parser(doc, prog)
    parser.add_argument(
        "run",
        metavar="RUN",
        help="run or checkpoint directory, path or URI; or a backbone with published weights, such as resnet50 or timm:NAME, "
        "and --data",
    )
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="queries: image files, folders, zips or lists (default: some images of the test split, of all shot groups); or "
        "data.KEY=VALUE that says how --data is read, such as data.label_column=species",
    )
    parser.add_argument("--data", metavar="URI", help="data to search (default: LTCORE_DATA, else training's)")
    parser.add_argument("--weights", metavar="FILE", help="weights of a backbone, as model.weights (default: default)")
    parser.add_argument("--output", metavar="FILE.html", help="where the page goes (default: into the run directory)")
    parser.add_argument("--neighbors", type=count, default=8, metavar="N", help="images for each query (default: 8)")
    parser.add_argument(
        "--prototypes", type=count, default=16, metavar="N", help="prototypes that are shown (default: 16)"
    )
    args = parser.parse_intermixed_args(argv)
    reading = take_reading(parser, args)
    for flag, given, most in (
        ("neighbors", args.neighbors, MOST_NEIGHBORS),
        ("prototypes", args.prototypes, MOST_PROTOTYPES),
    ):
        if given > most:
            parser.error(f"--{flag} {given}: a page shows at most {most}")
    if args.output and not args.output.endswith(".html"):
        parser.error(f"--output {args.output}: expected the ending .html")
    return RetrieveArgs(
        run=args.run,
        weights=args.weights and absolute("model.weights", args.weights),
        images=tuple(args.images),
        data=args.data or os.environ.get("LTCORE_DATA"),
        output=args.output,
        neighbors=args.neighbors,
        prototypes=args.prototypes,
        reading=reading,
    )
