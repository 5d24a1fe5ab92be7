"""`laconic bench rd`: rate and distortion against the bounds; coders and transforms against the best libraries.

Every rate is the length of packets. Peers run in the same process on the same input, one thread on both sides.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np

from ..core.combine import chain
from ..core.packet import Codec, codec, decode, info
from ..measure import (
    bits_per_element,
    gap_db,
    gaussian_distortion,
    inner_product,
    mse,
    vector_gaussian_distortion,
)
from .rows import Measurement, Row, median_seconds, ratio
from .sources import N, ar1_covariance, ar1_vectors, gaussian

TRELLIS = {1: 0.275, 2: 0.0685, 3: 0.0178, 4: 0.0046}
LLOYD_MAX = {1: 0.3634, 2: 0.1175, 3: 0.0345, 4: 0.0095}
TURBOQUANT = {1: 0.361, 2: 0.116, 3: 0.0340, 4: 0.0093}
MSE_SLOPE = {1: 0.64, 2: 0.88, 3: 0.97}


def _there_and_back(c: Codec, x: np.ndarray) -> tuple[bytes, float]:
    """(packet, mean squared error of what it decodes to)."""
    packet = c.fit(x).encode(x)
    return packet, mse(x, decode(packet).numpy())


def fixed_rate_trellis() -> Iterator[Row]:
    """N(0, 1) at exact rate: the codes take `bits` each and nothing else is sent but the header."""
    from ..entropy.coders import Pack
    from ..quantize.base import Quantizer
    from ..quantize.trellis import Trellis

    x = gaussian()
    for bits, target in TRELLIS.items():
        packet, d = _there_and_back(
            Codec(chain(Quantizer(Trellis(float(bits), states=1 << 16, length=4096)), Pack())), x
        )
        said = info(packet)
        codes = 8 * said.ledger.by_role()["codes"] / N
        bound = gaussian_distortion(bits)
        yield Row(f"trellis 2^16 states, {bits} bits: D", d, "σ²", "Shannon", bound, ("<=", target))
        yield Row(f"trellis 2^16 states, {bits} bits: codes", codes, "bits/value", "exact", float(bits), ("<=", bits))
        yield Row(f"trellis 2^16 states, {bits} bits: packet", bits_per_element(packet, N), "bits/value")


def best_composition() -> Iterator[Row]:
    """N(0, 1), entropy-coded trellis: distance to the bound at the packet's own rate."""
    from ..quantize.dependent import EntropyCodedTrellis

    x = gaussian()
    for states in (8, 256, 4096):
        for bits in (0.5, 1.0, 2.0, 3.0, 4.0):
            if states == 8 and bits < 1:
                continue
            packet, d = _there_and_back(Codec(EntropyCodedTrellis(bits=bits, states=states)), x)
            rate = bits_per_element(packet, N)
            gap = gap_db(d, gaussian_distortion(rate))
            target = ("<=", 0.25) if states >= 256 and bits >= 1 else None
            name = f"ECTCQ {states} states, {bits:g} bits"
            yield Row(f"{name}: above the bound", gap, "dB", "Shannon", 0.0, target)
            if states == 4096:
                yield Row(f"{name}: D at rate {rate:.4f}", d, "σ²", "Shannon", gaussian_distortion(rate))


def scalar_codebooks() -> Iterator[Row]:
    """Published distortions of Lloyd–Max and of TurboQuant-mse."""
    from ..entropy.coders import Pack
    from ..quantize.base import Quantizer
    from ..quantize.codebooks import LloydMax

    x = gaussian()
    for bits, published in LLOYD_MAX.items():
        _, d = _there_and_back(Codec(chain(Quantizer(LloydMax(1 << bits)), Pack())), x)
        yield Row(f"Lloyd–Max {bits} bits: D", d, "σ²", "published", published, ("<=", 1.01 * published))
    v = gaussian().reshape(-1, 128)
    for bits, published in TURBOQUANT.items():
        packet = codec("turboquant", bits=bits).fit(v).encode(v)
        back = decode(packet).numpy()
        d = float(np.mean(np.square(v - back).sum(1) / np.square(v).sum(1)))
        yield Row(f"TurboQuant-mse d=128 {bits} bits: D", d, "‖x‖²", "published", published, ("<=", 1.01 * published))


def inner_products() -> Iterator[Row]:
    """Slope of estimated against true inner products with random queries."""
    v, q = gaussian(1 << 19, seed=1).reshape(-1, 128), gaussian(512 * 128, seed=2).reshape(512, 128)
    v = v / np.linalg.norm(v, axis=1, keepdims=True)
    for bits in (1, 2, 3):
        back = decode(codec("turboquant", bits=bits).fit(v).encode(v)).numpy()
        slope = inner_product(v, back, q).slope
        theory = 1 - TURBOQUANT[bits]
        yield Row(f"TurboQuant-mse {bits} bits: slope", slope, "", "theory 1 − D", theory)
        yield Row(f"TurboQuant-mse {bits} bits: |slope − theory|", abs(slope - theory), "", target=("<=", 0.01))
        back = decode(codec("turboquant-prod", bits=bits).fit(v).encode(v)).numpy()
        slope = inner_product(v, back, q).slope
        yield Row(f"TurboQuant-prod {bits} bits: slope", slope, "", "unbiased", 1.0)
        yield Row(f"TurboQuant-prod {bits} bits: |slope − 1|", abs(slope - 1), "", target=("<=", 0.01))


FAISS = {
    2: ("PQ32x8", "PQ64x4"),
    3: ("PQ64x6",),
    4: ("SQ4", "PQ64x8"),
}


def correlated_vectors() -> Iterator[Row]:
    """AR(1), ρ = .9, 8192 vectors of 128, every byte counted, against reverse water-filling and faiss."""
    from ..quantize.dependent import EntropyCodedTrellis
    from ..transforms.dct import DCT

    x, covariance = ar1_vectors(), ar1_covariance()
    for bits in (2, 3, 4):
        c = Codec(chain(DCT(), EntropyCodedTrellis(bits=float(bits), axes=(-1,), states=256)))
        packet, d = _there_and_back(c, x)
        rate = bits_per_element(packet, x.size)
        bound = vector_gaussian_distortion(covariance, rate)
        peer, name = _best_faiss(x, bits)
        peer = None if peer is None else peer / vector_gaussian_distortion(covariance, bits)
        yield Row(f"AR(1) d=128, {bits} bits: D over the bound", d / bound, "×", name, peer, ("<=", 1.3))
        yield Row(f"AR(1) d=128, {bits} bits: rate", rate, "bits/value", "asked", float(bits), ("<=", float(bits)))


def _best_faiss(x: np.ndarray, bits: int) -> tuple[float | None, str]:
    """Least error of faiss's codes of so many bits, their codebooks and side tables not counted."""
    if find_spec("faiss") is None:
        return None, ""
    import faiss

    found = []
    for factory in FAISS[bits]:
        index = faiss.index_factory(x.shape[1], factory)
        index.train(ar1_vectors(10_000, seed=1))  # as many as its k-means asks for
        if index.sa_code_size() * 8 <= bits * x.shape[1]:
            found.append((mse(x, index.sa_decode(index.sa_encode(x))), f"faiss {factory}"))
    return min(found)


def rans_static() -> Iterator[Row]:
    """256 symbols of a Gaussian shape, 2^20 of them: coding and decoding against constriction, and rate against entropy."""
    from ..core.stage import Symbols
    from ..entropy.coders import Rans

    index = np.clip(np.rint(128 + 20 * gaussian(seed=3)), 0, 255).astype(np.uint8)
    pmf = np.bincount(index, minlength=256) / N
    entropy = float(-(pmf[pmf > 0] * np.log2(pmf[pmf > 0])).sum())
    coder = Rans()
    y, side = coder.encode(Symbols(index, 256))
    n_bytes = len(y) + sum(a.nbytes for a in side.values())
    yield Row("rANS static 256: rate over entropy", 100 * (8 * n_bytes / N / entropy - 1), "%", target=("<=", 0.3))
    assert (coder.decode(y, side).index == index).all()
    encode, decode_ = lambda: coder.encode(Symbols(index, 256)), lambda: coder.decode(y, side)
    yield from _against_constriction("rANS static 256", encode, decode_, *_constriction_static(index, pmf))


def rans_gaussian() -> Iterator[Row]:
    """Integers around a mean and of a scale that both ends know: a table against constriction's exact Gaussian."""
    from ..core.stage import Symbols
    from ..entropy.coders import Rans
    from ..entropy.models import GaussianTable

    rng = np.random.default_rng(4)
    scale_index = rng.integers(16, 56, N)
    scale, mean_index = 2.0 ** (scale_index / 8 - 3), rng.integers(-160, 160, N)
    values = np.rint(mean_index / 32 + scale * gaussian(seed=5)).astype(np.int32)
    coder = Rans(GaussianTable()).given(np.stack([scale_index, mean_index], -1))
    y, side = coder.encode(Symbols(values, 0))
    assert (coder.decode(y, side).index == values).all()
    n_bytes = len(y) + sum(a.nbytes for a in side.values())
    z = (values[:, None] + np.array([-0.5, 0.5]) - (mean_index / 32)[:, None]) / scale[:, None]
    from scipy.special import log_ndtr

    # mass of each integer's bin in the tail where both edges are on one side, for accuracy
    z = np.where(z.sum(1, keepdims=True) > 0, -z[:, ::-1], z)
    log_p = log_ndtr(z[:, 1]) + np.log1p(-np.exp(log_ndtr(z[:, 0]) - log_ndtr(z[:, 1])))
    ideal = float(-log_p.sum() / math.log(2))
    yield Row("Gaussian table: rate over ideal", 100 * (8 * n_bytes / ideal - 1), "%", target=("<=", 0.3))
    encode, decode_ = lambda: coder.encode(Symbols(values, 0)), lambda: coder.decode(y, side)
    yield from _against_constriction(
        "Gaussian table", encode, decode_, *_constriction_gaussian(values, mean_index / 32, scale)
    )


def _constriction_static(index: np.ndarray, pmf: np.ndarray) -> tuple[Any, ...]:
    if find_spec("constriction") is None:
        return ()
    from constriction import stream

    return _constriction_both(
        index.astype(np.int32), stream.model.Categorical(pmf.astype(np.float32), perfect=False), ()
    )


def _constriction_gaussian(values: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> tuple[Any, ...]:
    if find_spec("constriction") is None:
        return ()
    from constriction import stream

    family = stream.model.QuantizedGaussian(int(values.min()) - 1, int(values.max()) + 1)
    return _constriction_both(values, family, (mean.astype(np.float64), scale.astype(np.float64)))


def _constriction_both(values: np.ndarray, family: Any, parameters: tuple[np.ndarray, ...]) -> tuple[Any, ...]:
    """constriction's encoders and decoders, ANS and range; the faster of each is the peer."""
    from constriction import stream

    queue, stack = stream.queue, stream.stack

    n = () if parameters else (len(values),)

    def ans() -> Any:
        coder = stack.AnsCoder()
        coder.encode_reverse(values, family, *parameters)
        return coder.get_compressed()

    def range_() -> Any:
        coder = queue.RangeEncoder()
        coder.encode(values, family, *parameters)
        return coder.get_compressed()

    a, b = ans(), range_()
    return (ans, range_), (
        lambda: stack.AnsCoder(a).decode(family, *parameters, *n),
        lambda: queue.RangeDecoder(b).decode(family, *parameters, *n),
    )


def _against_constriction(name: str, encode: Any, decode_: Any, *peers: Any) -> Iterator[Row]:
    for what, ours, theirs in zip(("encode", "decode"), (encode, decode_), peers or ((), ()), strict=True):
        if not theirs:
            yield Row(f"{name}: {what}", N / median_seconds(ours) / 1e6, "Msymbol/s")
            continue
        pairs = [ratio(ours, peer) for peer in theirs]
        mine, best = min(p[0] for p in pairs), min(p[1] for p in pairs)
        yield Row(f"{name}: {what}", N / mine / 1e6, "Msymbol/s", "constriction", N / best / 1e6)
        yield Row(f"{name}: {what}, speed over constriction's", best / mine, "×", target=(">=", 1.0))


def hadamard_speed() -> Iterator[Row]:
    """Rows of 128 and 4096, out of place and far beyond the cache: against a dense product and a copy."""
    import torch

    from ..kernels.hadamard import aligned_empty, hadamard, matrix

    torch.set_num_threads(1)
    for n in (128, 4096):
        x, out = aligned_empty(((1 << 25) // n, n)), aligned_empty(((1 << 25) // n, n))
        x[:] = gaussian(1 << 20).reshape(-1, n)[np.arange(len(x)) % (N // n)]
        fast, copy = ratio(lambda x=x, out=out: hadamard(x, out=out), lambda x=x, out=out: np.copyto(out, x))
        gb = x.nbytes / 1e9
        yield Row(f"Hadamard n={n}", gb / fast, "GB/s", "memcpy", gb / copy)
        yield Row(f"Hadamard n={n}: speed over memcpy's", copy / fast, "×", target=(">=", 0.7))
        part = torch.from_numpy(x[: len(x) if n == 128 else 256])
        dense = torch.from_numpy((matrix(n) / math.sqrt(n)).astype(np.float32))
        seconds = median_seconds(lambda part=part, dense=dense: part @ dense, 3) * len(x) / len(part)
        target = (">=", 3.0) if n == 128 else None
        yield Row(f"Hadamard n={n}: speed over torch's dense product", seconds / fast, "×", target=target)


def trellis_speed() -> Iterator[Row]:
    """2 bits, 2^12 states, one core; tail-biting included."""
    import torch

    from ..quantize.trellis import Trellis

    torch.set_num_threads(1)
    book, x = Trellis(2.0, states=1 << 12), torch.from_numpy(gaussian(1 << 18))
    index = book.nearest(x)
    yield Row("trellis encode 2 bits 2^12 states", len(x) / median_seconds(lambda: book.nearest(x), 3) / 1e6, "Mvalue/s",
              target=(">=", 0.5))  # fmt: skip
    many = index.repeat(16)
    speed = 16 * len(x) / median_seconds(lambda: book.lookup(many)) / 1e6
    yield Row("trellis decode 2 bits 2^12 states", speed, "Mvalue/s", target=(">=", 100.0))


def start_up() -> Iterator[Row]:
    """`laconic --help` in a fresh process, warm, and whether torch was imported on the way."""
    command = [sys.executable, "-m", "laconic.cli.main", "--help"]
    seconds = median_seconds(lambda: subprocess.run(command, capture_output=True, check=True), 5)
    yield Row("laconic --help", seconds, "s", target=("<=", 0.35))
    code = "import laconic.cli.main, sys; sys.exit('torch' in sys.modules)"
    yield Row(
        "torch imported by --help", float(subprocess.run([sys.executable, "-c", code]).returncode), "", target=("<=", 0)
    )


SUITE = (
    Measurement("start-up", start_up),
    Measurement("hadamard", hadamard_speed),
    Measurement("rans static", rans_static),
    Measurement("gaussian table", rans_gaussian),
    Measurement("trellis speed", trellis_speed),
    Measurement("scalar codebooks", scalar_codebooks),
    Measurement("inner products", inner_products),
    Measurement("correlated vectors", correlated_vectors),
    Measurement("trellis fixed rate", fixed_rate_trellis),
    Measurement("entropy-coded trellis", best_composition),
)
