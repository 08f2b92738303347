"""Tokens as columns of a Parquet file, in float16."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from torch import Tensor

from huvr.errors import HuvrError
from huvr.model.tokens import Tokens


def token_columns(prefix: str, tokens: Tokens) -> dict[str, pa.Array]:
    """``cls`` as lists of D numbers, ``patches`` as lists of lists of D."""
    rows, count = tokens.patches.shape[:2]
    patches = pa.ListArray.from_arrays(
        pa.array(np.arange(rows + 1, dtype=np.int32) * count), vectors(tokens.patches.flatten(0, 1))
    )
    return {f"{prefix}cls": vectors(tokens.cls), f"{prefix}patches": patches}


def vectors(numbers: Tensor) -> pa.FixedSizeListArray:
    """``(N, D)`` as N lists of D float16 numbers."""
    halves = numbers.half()
    if not halves.isfinite().all():
        raise HuvrError("these tokens leave the range of float16: the encoder is damaged, or not made for such images")
    return pa.FixedSizeListArray.from_arrays(pa.array(halves.flatten().cpu().numpy()), numbers.shape[1])
