"""Code that is not what an encoder wrote, drawn by Hypothesis."""

import numpy as np
from hypothesis import strategies as st


def damaged(data, code, n, longest=3, noise=200):
    """A code and a length of which one is wrong: bits flipped, cut, extended, another length (up to `longest` · n), or noise."""
    code = code.copy()
    kind = data.draw(st.sampled_from(["flip", "cut", "extend", "length", "noise"]))
    if kind == "flip":
        code[data.draw(st.integers(0, code.size - 1))] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        code = code[: data.draw(st.integers(0, code.size - 1))]
    elif kind == "extend":
        code = np.append(code, np.frombuffer(data.draw(st.binary(min_size=1, max_size=9)), np.uint8))
    elif kind == "length":
        n = data.draw(st.integers(0, longest * n).filter(lambda m: m != n))
    else:
        code = np.frombuffer(data.draw(st.binary(max_size=noise)), np.uint8)
    return code, n
