"""A packet taken apart and put together again: for those who change what is in it and know its parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .errors import ModelMismatch
from .packet import DEFAULT_LIMIT, Codec, _embedded, _open
from .stage import Side, Stage
from .wire import read_sections, write_array, write_sections


@dataclass(frozen=True)
class Opened:
    """stage: with its learned arrays. payload, side: what its `encode` gave. head: the packet up to its sections."""

    stage: Stage
    payload: bytes
    side: Side
    head: bytes
    shape: tuple[int, ...]

    def changed(self, payload: bytes, side: Side, stage: Stage | None = None) -> Opened:
        """The same with other contents; `stage` may differ in its learned arrays only."""
        return replace(self, payload=payload, side=side, stage=stage or self.stage)

    def packet(self) -> bytes:
        """The bytes."""
        out = bytearray(self.head)
        for _, array in self.stage.arrays().values():
            assert array is not None  # it came out of a packet
            write_array(out, array, True)
        return bytes(out) + write_sections(self.stage, {**self.side, "payload": self.payload})


def reopen(packet: bytes, codecs: Mapping[str, Codec] | None = None, limit_bytes: int = DEFAULT_LIMIT) -> Opened:
    """The parts of a packet that holds an array and all that it learned. Raises CorruptStream, ModelMismatch."""
    opened = _open(packet, limit_bytes, codecs)
    if "model" in opened.header:
        raise ModelMismatch("the packet's learned arrays are in a file of their own; only whole packets can be changed")
    stage = opened.stage.with_arrays(_embedded(opened, []))
    side: dict[str, Any] = read_sections(stage, opened.reader)
    opened.reader.finish()
    head, shape = bytes(packet[: opened.header_bytes]), tuple(opened.header["shape"])
    return Opened(stage, side.pop("payload"), side, head, shape)
