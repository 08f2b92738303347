"""The training data of the model that ships: two public packs as one, and the pictures of a third part held out.

    python benchmarks/tiny_pack.py --photographs imagenet1k-sample-256/train.parquet --imagenette imagenette-160 --out FOLDER

Photographs of full resolution are few, so each is listed several times; the last 90 are held out, as in
``modulation.py``. Without ``--imagenette`` they are all there is, as some parts of the training want it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from huvr.files import whole

HELD_OUT = 90


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", required=True, help="Parquet of photographs, their shorter side 256 pixels or more.")
    parser.add_argument("--imagenette", help="Folder with ImageNette's train.parquet, whose images come after them.")
    parser.add_argument("--times", type=int, default=10, help="Each photograph in an epoch.")
    parser.add_argument("--out", required=True, help="Folder for train.parquet and validation.parquet.")
    options = parser.parse_args()
    photographs = pq.read_table(options.photographs, columns=["image"])
    seen = [photographs.slice(0, len(photographs) - HELD_OUT)] * options.times
    if options.imagenette:
        small = pq.read_table(Path(options.imagenette) / "train.parquet", columns=["image"])
        seen.append(small.cast(photographs.schema))
    splits = {
        "train": pa.concat_tables(seen),
        "validation": photographs.slice(len(photographs) - HELD_OUT),
    }
    for split, table in splits.items():
        with whole(Path(options.out) / f"{split}.parquet") as temporary:
            pq.write_table(table.replace_schema_metadata(None), temporary)
        print(f"{split}: {len(table)} rows")


if __name__ == "__main__":
    main()
