"""The command lines of ``export`` and ``card``."""

from __future__ import annotations

from collections.abc import Sequence

from ltcore.cli.args import CardArgs, ExportArgs
from ltcore.cli.parsers import add_prediction_flags, command_parser


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
    add_prediction_flags(parser)
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
