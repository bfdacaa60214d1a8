"""The words of an arena end in pages that fault when read, so a failed assertion must not try to print them."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np


def _repr(array: Any) -> str:
    if array.size > 1 << 14:
        return f"<{array.size} elements of {array.dtype}>"
    return f"array({np.array2string(array, separator=', ')})"


with contextlib.suppress(TypeError):  # NumPy 2.0 has no such option
    np.set_printoptions(override_repr=_repr)
