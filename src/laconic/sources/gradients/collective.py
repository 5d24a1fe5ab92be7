"""Collectives as requests, so that one worker's code runs on a network and in a simulation alike.

A worker is a generator: it yields what it wants of the others and is sent the reply. `run` answers from torch.distributed, with
one worker a process; `run_together` from the other workers of this process, in the order of their ranks.

Bytes are counted as a ring or pairwise exchange sends them, by rank and whatever the backend does: of n ranks each sends
2 (n − 1)/n of a buffer that is reduced, n − 1 times what is gathered (padded to the longest message, with 8 bytes of length),
and what it has for others of what is scattered.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")


class Mean(NamedTuple):
    """The mean over all ranks of a flat buffer; reply: Tensor of the same shape and dtype. All ranks get the same bits."""

    buffer: Tensor


class Gather(NamedTuple):
    """Everybody's message to everybody; reply: `Messages`."""

    message: bytes


@dataclass
class Messages:
    """By rank. understood: what they say, once one worker of this process has decoded them; a simulation has many."""

    packets: list[bytes]
    understood: Any = None


class Scatter(NamedTuple):
    """A message to each rank, of sizes that all know beforehand; reply: list of bytes, by rank of the sender."""

    messages: list[bytes]
    expected: list[int]  # bytes from each rank


Request = Mean | Gather | Scatter
Work = Generator[Request, Any, T]


@dataclass
class Traffic:
    """What one rank has sent.

    handed_bytes: length of what it handed to collectives. sent_bytes: what leaves it on a ring (see the module).
    seconds: in collectives, waiting for others included.
    """

    handed_bytes: int = 0
    sent_bytes: float = 0.0
    n_collectives: int = 0
    seconds: float = 0.0
    by_kind: dict[str, float] = field(default_factory=dict)

    def count(self, request: Request, world: int, rank: int, longest: int) -> None:
        """Add a request. longest: of the messages gathered."""
        if isinstance(request, Mean):
            handed = request.buffer.numel() * request.buffer.element_size()
            sent = 2 * (world - 1) / world * handed
        elif isinstance(request, Gather):
            handed = len(request.message)
            sent = (world - 1) * (longest + 8)
        else:
            handed = sum(map(len, request.messages))
            sent = handed - len(request.messages[rank])
        kind = type(request).__name__.lower()
        self.handed_bytes += handed
        self.sent_bytes += sent
        self.by_kind[kind] = self.by_kind.get(kind, 0) + sent
        self.n_collectives += 1


def run(work: Work[T], traffic: Traffic, group: Any = None) -> T:
    """Drive a worker to its end over torch.distributed (`group`: a process group, None for the default one)."""
    import torch.distributed as dist

    world, rank = dist.get_world_size(group), dist.get_rank(group)
    reply: Any = None
    while True:
        try:
            request = work.send(reply)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        start = time.perf_counter()
        if isinstance(request, Mean):
            longest, reply = 0, _reduce(request.buffer, world, group)
        elif isinstance(request, Gather):
            longest, packets = _gather(request.message, world, group)
            reply = Messages(packets)
        else:
            longest, reply = 0, _scatter(request, group)
        traffic.seconds += time.perf_counter() - start
        traffic.count(request, world, rank, longest)


def _device(group: Any) -> torch.device:
    """Where buffers of a group have to lie."""
    import torch.distributed as dist

    on_gpu = dist.get_backend(group) == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def _reduce(buffer: Tensor, world: int, group: Any) -> Tensor:
    import torch.distributed as dist

    narrow = buffer.dtype in (torch.float16, torch.bfloat16)
    mine = (buffer / world if narrow else buffer.clone()).to(
        _device(group)
    )  # so that a sum of halves does not overflow
    dist.all_reduce(mine, group=group)
    return (mine if narrow else mine / world).to(buffer.device)


def _gather(message: bytes, world: int, group: Any) -> tuple[int, list[bytes]]:
    import torch.distributed as dist

    device = _device(group)
    lengths = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world)]
    dist.all_gather(lengths, torch.tensor([len(message)], device=device), group=group)
    sizes = [int(n) for n in lengths]
    longest = max(sizes)
    mine = torch.zeros(longest, dtype=torch.uint8)
    mine[: len(message)] = _tensor(message)
    found = [torch.empty(longest, dtype=torch.uint8, device=device) for _ in range(world)]
    if longest:
        dist.all_gather(found, mine.to(device), group=group)
    return longest, [t[:n].cpu().numpy().tobytes() for t, n in zip(found, sizes, strict=True)]


def _scatter(request: Scatter, group: Any) -> list[bytes]:
    import torch.distributed as dist

    device = _device(group)
    found = torch.empty(sum(request.expected), dtype=torch.uint8, device=device)
    mine = _tensor(b"".join(request.messages)).to(device)
    dist.all_to_all_single(found, mine, request.expected, [len(m) for m in request.messages], group=group)
    return [t.cpu().numpy().tobytes() for t in found.split(request.expected)]


def _tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def run_together(works: Sequence[Work[T]], traffic: Sequence[Traffic]) -> list[T]:
    """Drive all workers of a simulated network to their ends; they must ask for the same things in the same order."""
    world = len(works)
    replies: list[Any] = [None] * world
    while True:
        requests, ends = [], []
        for work, reply in zip(works, replies, strict=True):
            try:
                requests.append(work.send(reply))
            except StopIteration as end:
                ends.append(end.value)
        if ends:
            if requests:
                raise RuntimeError(f"{len(ends)} of {world} workers are done while the others wait for them")
            return ends
        replies, longest = _answers(requests, world)
        for rank, (request, t) in enumerate(zip(requests, traffic, strict=True)):
            t.count(request, world, rank, longest)


def _answers(requests: list[Request], world: int) -> tuple[list[Any], int]:
    first = requests[0]
    if any(type(r) is not type(first) for r in requests):
        raise RuntimeError(f"workers ask for {', '.join(type(r).__name__ for r in requests)} at once")
    if isinstance(first, Mean):
        narrow = first.buffer.dtype in (torch.float16, torch.bfloat16)
        total = first.buffer / world if narrow else first.buffer.clone()
        for r in requests[1:]:
            total += r.buffer / world if narrow else r.buffer  # type: ignore[union-attr]
        mean = total if narrow else total / world
        return [mean.clone() for _ in requests], 0
    if isinstance(first, Gather):
        messages = Messages([r.message for r in requests])  # type: ignore[union-attr]
        return [messages] * world, max(map(len, messages.packets))
    return [[r.messages[i] for r in requests] for i in range(world)], 0  # type: ignore[union-attr]
