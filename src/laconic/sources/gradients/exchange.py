"""One step's exchange: gradients of one rank in, the mean that all ranks agree on out."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...core.combine import ErrorControl, ErrorFeedback
from ...core.errors import CorruptStream, decode_budget
from ...core.stage import Stage
from ...core.wire import Reader, read_sections, write_sections, write_varint
from .collective import Gather, Mean, Messages, Work
from .memory import Memory

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LEAST = 1e-30  # root mean square below which a gradient is as good as zero


class Sent(NamedTuple):
    """Of one parameter. own: what this rank's message decodes to; mean: of all ranks'. None where nothing was said."""

    own: Tensor | None
    mean: Tensor | None


def exchange_plain(tensors: Sequence[Tensor], dtype: str, healthy: bool) -> Work[list[Tensor] | None]:
    """Means of tensors as they are, in one buffer; None on all ranks if one of them is not healthy.

    The buffer has one value more, 0 or NaN: what one rank adds, all see.
    """
    flag = torch.zeros(1) if healthy else torch.full((1,), torch.nan)
    mean = yield Mean(
        torch.cat([*(t.reshape(-1) for t in tensors), flag.to(tensors[0]) if tensors else flag]).to(DTYPES[dtype])
    )
    if not bool(torch.isfinite(mean[-1])):
        return None
    parts = mean[:-1].float().split([t.numel() for t in tensors]) if tensors else ()
    return [p.reshape(t.shape) for p, t in zip(parts, tensors, strict=True)]


def exchange_codes(targets: Sequence[Tensor | None], codecs: Sequence[Stage], rank: int) -> Work[list[Sent]]:
    """Everybody's packets to everybody; the mean of what they decode to. None: this rank has nothing to say.

    Message: per parameter a varint length, 0 for nothing, and the codec's sections without checksums (the transport has its).
    """
    message = bytearray()
    for target, codec in zip(targets, codecs, strict=True):
        packet = b"" if target is None else encode(codec, target)
        write_varint(message, len(packet))
        message += packet
    messages: Messages = yield Gather(bytes(message))
    if messages.understood is None:
        messages.understood = _understand(messages.packets, codecs)
    said, means = messages.understood
    for target, mean in zip(targets, means, strict=True):
        if target is not None and mean.shape != target.shape:
            raise CorruptStream(f"gradients of {tuple(mean.shape)} arrive for one of {tuple(target.shape)}")
    return [Sent(own, mean) for own, mean in zip(said[rank], means, strict=True)]


def _understand(
    packets: Sequence[bytes], codecs: Sequence[Stage]
) -> tuple[list[list[Tensor | None]], list[Tensor | None]]:
    """What every rank says of every parameter, None for nothing; and the means."""
    said, means = [], []
    for packet in packets:
        reader = Reader(packet)
        parts = [reader.take(reader.varint()) for _ in codecs]
        reader.finish()
        said.append([decode(codec, part) if len(part) else None for codec, part in zip(codecs, parts, strict=True)])
    for column in zip(*said, strict=True):
        there = [x for x in column if x is not None]
        if len({x.shape for x in there}) > 1:
            raise CorruptStream(
                f"ranks send gradients of shapes {sorted({tuple(x.shape) for x in there})} for one parameter"
            )
        total = None
        for x in there:
            total = x.clone() if total is None else total.add_(x)
        means.append(None if total is None else total.div_(len(packets)))
    return said, means


def exchange_whole(
    targets: Sequence[Tensor | None], shapes: Sequence[Sequence[int]], codec: Stage, rank: int
) -> Work[list[Sent]]:
    """All parameters as one vector, each in units of its root mean square, and one packet of it from everybody.

    Message: the units, float32 a parameter, 0 where this rank has nothing to say; the packet. What is worth its bits is then
    judged over the whole model, and there is one code to learn instead of one a parameter.
    """
    sizes = [math.prod(s) for s in shapes]
    units = np.array(
        [0.0 if t is None else float(t.norm()) / math.sqrt(n) for t, n in zip(targets, sizes, strict=True)], np.float32
    )
    units[units < LEAST] = 0
    joined = torch.zeros(sum(sizes))
    for target, unit, part in zip(targets, units.tolist(), joined.split(sizes), strict=True):
        if target is not None and unit:
            torch.mul(target.reshape(-1), 1 / unit, out=part)
    messages: Messages = yield Gather(units.tobytes() + encode(codec, joined))
    if messages.understood is None:
        messages.understood = _understand_whole(messages.packets, sizes, codec)
    said, mean = messages.understood
    own = said[rank].split(sizes)
    return [
        Sent(None if t is None else o.reshape(tuple(shape)), m.reshape(tuple(shape)))
        for t, o, m, shape in zip(targets, own, mean.split(sizes), shapes, strict=True)
    ]


def _understand_whole(packets: Sequence[bytes], sizes: Sequence[int], codec: Stage) -> tuple[list[Tensor], Tensor]:
    said = []
    for packet in packets:
        if len(packet) < 4 * len(sizes):
            raise CorruptStream(f"{len(packet)} bytes of gradients; the units of {len(sizes)} parameters take more")
        units = np.frombuffer(packet, np.float32, len(sizes))
        x = decode(codec, packet[4 * len(sizes) :])
        if x.shape != (sum(sizes),) or not np.isfinite(units).all():
            raise CorruptStream(
                f"gradients of shape {tuple(x.shape)} for {sum(sizes):,} values, or units that are not finite"
            )
        for part, unit in zip(x.split(list(sizes)), units.tolist(), strict=True):
            part.mul_(unit)
        said.append(x)
    mean = said[0].clone()
    for x in said[1:]:
        mean += x
    return said, mean.div_(len(said))


def encode(codec: Stage, x: Tensor) -> bytes:
    """The sections of one packet."""
    y, side = codec.encode(x)
    return write_sections(codec, {**side, "payload": y}, checksum=False)


def decode(codec: Stage, packet: bytes | memoryview) -> Tensor:
    """What they decode to; memory is limited by the longest gradient that such a packet may describe."""
    reader = Reader(packet)
    with decode_budget(1 << 34):
        side = read_sections(codec, reader, checksum=False)
        reader.finish()
        return codec.decode(side["payload"], {k: v for k, v in side.items() if k != "payload"})


def matrix(shape: Sequence[int]) -> tuple[int, int]:
    """A parameter as a matrix: first axis by all others."""
    return shape[0], math.prod(shape[1:])


def exchange_factors(
    targets: Sequence[Tensor], memories: Sequence[Memory], ranks: Sequence[int], names: Sequence[str], seed: int, add: Sum,
    turn: bool = False,
) -> Work[list[Sent]]:  # fmt: skip
    """One power iteration, warm from the step before, in two rounds of all ranks.

        P = mean M_i Q,   P̂ = orthonormal P,   Q_i = M_iᵀ P̂,   Q = mean Q_i;   the mean of the M_i is taken as P̂ Qᵀ

    add: how factors are averaged, `add_numbers` or `add_codes`. turn: P̂ is rotated within its span, by an r × r matrix that all
        know, so that columns of Q, and of P in the next step, have about the same energy: for a code that has one step for all.
    Source: Vogels, Karimireddy & Jaggi 2019, PowerSGD (1905.13727), Alg. 1. Differs: what a rank owes is M_i − P̂ Q_iᵀ, of its
    own Q_i as it was sent, not of the mean: the two agree on average over the ranks, errors of heterogeneous ranks do not grow
    apart, and what coding Q_i loses is owed as well. (What coding P loses turns the subspace a little and is owed by nobody.)
    """
    flat = [t.reshape(matrix(t.shape)) for t in targets]
    starts = [_start(m, r, memory, name, seed) for m, r, memory, name in zip(flat, ranks, memories, names, strict=True)]
    products = yield from add([m @ q for m, q in zip(flat, starts, strict=True)])
    bases = [torch.linalg.qr(p).Q if bool(p.any()) else torch.zeros_like(p) for _, p in products]
    if turn:
        bases = [p @ _rotation(p.shape[1], seed) for p in bases]
    factors = yield from add([m.T @ p for m, p in zip(flat, bases, strict=True)])
    out = []
    for target, memory, (q, shared), p in zip(targets, memories, factors, bases, strict=True):
        if bool(shared.any()):
            memory.factor = shared
        out.append(Sent((p @ q.T).reshape(target.shape), (p @ shared.T).reshape(target.shape)))
    return out


@cache
def _rotation(rank: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(rank, rank, generator=torch.Generator().manual_seed(seed))).Q


Sum = Callable[[Sequence[Tensor]], Work[list[tuple[Tensor, Tensor]]]]
"""Tensors -> (what this rank's became on the wire, the mean of all ranks')."""


def add_numbers(dtype: str) -> Sum:
    """Sums on the way, as numbers of a dtype."""

    def add(tensors: Sequence[Tensor]) -> Work[list[tuple[Tensor, Tensor]]]:
        sizes = [t.numel() for t in tensors]
        own = torch.cat([t.reshape(-1) for t in tensors]).to(DTYPES[dtype])
        mean = yield Mean(own)
        parts = zip(tensors, own.float().split(sizes), mean.float().split(sizes), strict=True)
        return [(o.reshape(t.shape), m.reshape(t.shape)) for t, o, m in parts]

    return add


def add_codes(codec: Stage, rank: int) -> Sum:
    """Packets to all, of one vector with every tensor in units of its root mean square."""

    def add(tensors: Sequence[Tensor]) -> Work[list[tuple[Tensor, Tensor]]]:
        sent = yield from exchange_whole(tensors, [t.shape for t in tensors], codec, rank)
        return [(s.own, s.mean) for s in sent]  # type: ignore[misc]

    return add


def _start(m: Tensor, rank: int, memory: Memory, name: str, seed: int) -> Tensor:
    """Q to begin with: the last one, cut to its longest columns or filled up with normal ones that all ranks draw alike."""
    before = memory.factor
    if before is not None and before.shape[1] == rank:
        return before
    if before is not None and before.shape[1] > rank:
        longest = before.norm(dim=0).argsort(descending=True, stable=True)[:rank]
        return before[:, longest.sort().values]
    g = torch.Generator().manual_seed(zlib.crc32(name.encode()) + (seed << 32))
    fresh = torch.randn(m.shape[1], rank, generator=g).to(m)
    return fresh if before is None else torch.cat([before, fresh[:, before.shape[1] :]], 1)


def aim(control: ErrorFeedback | ErrorControl | None, memory: Memory, x: Tensor) -> Tensor:
    """What to send for the gradient x."""
    if control is None:
        return x
    if memory.state is None:
        memory.state = control.start(x)
    return control.aim(memory.state, x)
