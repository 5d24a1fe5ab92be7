"""Codes of tensors on a device, against the layout written out bit by bit and the plain twin of the kernels."""

import numpy as np
import pytest
import torch

from laconic.core.errors import BadInput
from laconic.kernels.coordinates import block_bytes, quantize_coordinates_plain
from laconic.kernels.device_coordinates import Layout, padded_thresholds, ranks

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BITS = np.array([[8, 6, 5, 4, 3, 2, 1, 0], [0, 7, 1, 4, 4, 2, 0, 8]], np.uint8)


@pytest.mark.parametrize("n_tokens", [1, 64, 150])
def test_planes_lie_by_width_and_tokens_from_the_lowest_bits_up(n_tokens):
    rng = np.random.default_rng(n_tokens)
    index = (rng.integers(0, 256, (2, n_tokens, 8)) & ((1 << BITS.astype(int)) - 1)[:, None]).astype(np.uint8)
    layout = Layout.of(BITS, DEVICE)
    codes = layout.pack(torch.from_numpy(index).to(DEVICE))
    assert layout.block_bytes == block_bytes(BITS)
    padded = np.zeros((2, -(-n_tokens // 64) * 64, 8), np.uint8)
    padded[:, :n_tokens] = index
    for b, block in enumerate(codes.cpu().numpy()):
        bits = []
        for width in (8, 4, 2, 1):
            for h, j in np.argwhere(BITS & width):
                low = BITS[h, j] & (16 - 2 * width)  # lower bits are in wider planes
                part = padded[h, 64 * b : 64 * b + 64, j] >> low
                bits.append(np.unpackbits(part[:, None], axis=1, count=width, bitorder="little").reshape(-1))
        np.testing.assert_array_equal(block, np.packbits(np.concatenate(bits), bitorder="little"))
    np.testing.assert_array_equal(layout.unpack(codes).cpu().numpy()[:, :n_tokens], index)


def test_ranks_are_those_of_the_plain_twin():
    rng = np.random.default_rng(0)
    y = rng.standard_normal((2, 50, 8)).astype(np.float32)
    lists = [[np.sort(rng.standard_normal((1 << int(b)) - 1)).astype(np.float32) for b in row] for row in BITS]
    y[0, 3, 2], y[1, 4, 3], y[0, 5, 0] = np.nan, np.inf, lists[0][0][7]  # a value that is a threshold is not above it
    found = ranks(torch.from_numpy(y).to(DEVICE), torch.from_numpy(padded_thresholds(lists)).to(DEVICE))
    for h in range(2):
        np.testing.assert_array_equal(found[h].cpu().numpy(), quantize_coordinates_plain(y[h], lists[h]))


def test_codes_of_another_shape_are_refused():
    with pytest.raises(BadInput, match=r"uint8 \(2, n_tokens, 8\)"):
        Layout.of(BITS, "cpu").pack(torch.zeros(2, 5, 7, dtype=torch.uint8))
