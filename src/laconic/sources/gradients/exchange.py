"""One step's exchange: gradients of one rank in, the mean that all ranks agree on out."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.combine import ErrorControl, ErrorFeedback
from ...core.errors import CorruptStream, decode_budget
from ...core.stage import Stage
from ...core.wire import Reader, read_sections, write_sections, write_varint
from .collective import Gather, Mean, Work
from .memory import Memory

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Sent(NamedTuple):
    """Of one parameter. own: what this rank's message decodes to; mean: of all ranks'."""

    own: Tensor
    mean: Tensor


def exchange_plain(tensors: Sequence[Tensor], dtype: str, healthy: bool) -> Work[list[Tensor] | None]:
    """Means of tensors as they are, in one buffer; None on all ranks if one of them is not healthy.

    The buffer has one value more, 0 or NaN: what one rank adds, all see.
    """
    flag = torch.zeros(1) if healthy else torch.full((1,), torch.nan)
    mean = yield Mean(torch.cat([*(t.reshape(-1) for t in tensors), flag.to(tensors[0]) if tensors else flag]).to(DTYPES[dtype]))
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
    messages = yield Gather(bytes(message))
    readers = [Reader(m) for m in messages]
    out = []
    for target, codec in zip(targets, codecs, strict=True):
        own = mean = None
        for sender, reader in enumerate(readers):
            packet = reader.take(reader.varint())
            if not len(packet):
                continue
            got = decode(codec, packet)
            if target is not None and got.shape != target.shape:
                raise CorruptStream(f"rank {sender} sends {tuple(got.shape)} for a gradient of {tuple(target.shape)}")
            if sender == rank:
                own = got
            mean = got.clone() if mean is None else mean.add_(got)
        out.append((own, None if mean is None else mean.div_(len(messages))))
    for reader in readers:
        reader.finish()
    return out


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
    targets: Sequence[Tensor], memories: Sequence[Memory], ranks: Sequence[int], names: Sequence[str], seed: int, dtype: str
) -> Work[list[Sent]]:
    """One power iteration, warm from the step before, in two sums of all ranks.

        P = mean M_i Q,   P̂ = orthonormal P,   Q_i = M_iᵀ P̂,   Q = mean Q_i;   the mean of the M_i is taken as P̂ Qᵀ

    Source: Vogels, Karimireddy & Jaggi 2019, PowerSGD (1905.13727), Alg. 1. Differs: what a rank owes is M_i − P̂ Q_iᵀ, of its
    own Q_i, not of the mean: the two agree on average over the ranks, and errors of heterogeneous ranks do not grow apart.
    """
    flat = [t.reshape(matrix(t.shape)) for t in targets]
    starts = [_start(m, r, memory, name, seed) for m, r, memory, name in zip(flat, ranks, memories, names, strict=True)]
    products = [m @ q for m, q in zip(flat, starts, strict=True)]
    mean = yield Mean(torch.cat([p.reshape(-1) for p in products]).to(DTYPES[dtype]))
    bases = []
    for p, part in zip(products, mean.float().split([p.numel() for p in products]), strict=True):
        bases.append(torch.linalg.qr(part.reshape(p.shape)).Q if bool(part.any()) else torch.zeros_like(p))
    own = [(m.T @ p).to(DTYPES[dtype]) for m, p in zip(flat, bases, strict=True)]
    mean = yield Mean(torch.cat([q.reshape(-1) for q in own]))
    out = []
    for target, memory, q, p, part in zip(targets, memories, own, bases, mean.split([q.numel() for q in own]), strict=True):
        shared = part.reshape(q.shape).float()
        if bool(shared.any()):
            memory.factor = shared
        out.append(Sent((p @ q.float().T).reshape(target.shape), (p @ shared.T).reshape(target.shape)))
    return out


def _start(m: Tensor, rank: int, memory: Memory, name: str, seed: int) -> Tensor:
    """Q to begin with: the last one, cut or filled up with normal columns that all ranks draw alike."""
    before = memory.factor
    if before is not None and before.shape[1] >= rank:
        return before[:, :rank]
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
