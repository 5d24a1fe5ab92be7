"""Code that is not what an encoder wrote, drawn by Hypothesis."""

import numpy as np
from hypothesis import strategies as st


def damaged(data, code, size, sizes, noise=200):
    """A code and a size of which one is wrong: bits flipped, cut, extended, another of `sizes`, or noise."""
    code = code.copy()
    kind = data.draw(st.sampled_from(["flip", "cut", "extend", "size", "noise"]))
    if kind == "flip":
        code[data.draw(st.integers(0, code.size - 1))] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        code = code[: data.draw(st.integers(0, code.size - 1))]
    elif kind == "extend":
        code = np.append(code, np.frombuffer(data.draw(st.binary(min_size=1, max_size=9)), np.uint8))
    elif kind == "size":
        size = data.draw(sizes.filter(lambda other: other != size))
    else:
        code = np.frombuffer(data.draw(st.binary(max_size=noise)), np.uint8)
    return code, size
