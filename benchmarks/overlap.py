"""How many of the images that ImageNette holds out are training images of ImageNet, and so known to whatever learned from them.

    python benchmarks/overlap.py --data imagenette-160/validation.parquet

By the names of the files: n03888257_7960.JPEG is a training image of ImageNet, ILSVRC2012_val_00022538.JPEG is none.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pyarrow.parquet as pq
from common import RESULTS, short, write_record

OF_TRAINING = re.compile(r"n\d{8}_\d+\.JPEG")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="Parquet file of images with their names")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    args = parser.parse_args()
    names = [Path(image["path"]).name for image in pq.read_table(args.data, columns=["image"]).column("image").to_pylist()]
    known = sum(bool(OF_TRAINING.fullmatch(name)) for name in names)
    figures = {"images": len(names), "training_images_of_imagenet": known, "share": round(known / len(names), 3)}
    print(figures)
    write_record("overlap", short(args.data), {}, figures, args.out)


if __name__ == "__main__":
    main()
