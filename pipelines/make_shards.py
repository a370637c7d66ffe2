"""Make shards from images, check shards, describe them, or draw them.

python pipelines/make_shards.py images.zip OUT --imbalance-factor 100   train|val|test/<class>/<image> or <class>/<image>
python pipelines/make_shards.py FOLDER OUT --list train=a.txt --list test=b.txt   lines 'path label' below FOLDER
python pipelines/make_shards.py labels.csv OUT   a header and a line for each image; also tsv, parquet and .txt lists
python pipelines/make_shards.py cifar100 OUT --imbalance-factor 100 --subset legacy   the published selection
python pipelines/make_shards.py glt FOLDER OUT --discover random   a GLT benchmark; glt --help tells more
python pipelines/make_shards.py check URI    reads everything and lists what is wrong
python pipelines/make_shards.py info URI     prints the manifest for a person
python pipelines/make_shards.py pictures digits-glt   writes histograms and sample grids of any data as PNG files
"""

from __future__ import annotations

try:
    from ltcore.cli.entry import run_main
    from ltcore.cli.main import shards
except ModuleNotFoundError as error:
    raise SystemExit(
        f"{error.name} is not installed for this Python. From a checkout: pip install -e . (or start the script with "
        "`uv run`). On a cluster: install ltcore on every node (setup_commands in cluster.yaml)."
    ) from None

if __name__ == "__main__":
    run_main(lambda: shards(__doc__))
