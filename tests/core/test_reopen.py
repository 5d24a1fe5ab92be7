from __future__ import annotations

import pytest
import torch

import laconic
from laconic.core.reopen import reopen
from laconic.quantize.codes import codes_of

W = torch.randn(32, 256, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["gptq", "vptq", "ectcq", "k-quant", "spqr"])
def test_a_packet_comes_together_as_it_was(name: str) -> None:
    packet = laconic.codec(name).fit(W).encode(W)
    assert reopen(packet).packet() == packet


@pytest.mark.parametrize("name", ["gptq", "vptq"])
def test_codes_say_what_the_packet_decodes_to(name: str) -> None:
    packet = laconic.codec(name).fit(W).encode(W)
    codes = codes_of(reopen(packet))
    assert codes is not None
    assert torch.equal(codes.weight(), laconic.decode(packet))
    assert codes.packet() == packet


def test_other_codes_and_scales_are_what_is_decoded_then() -> None:
    packet = laconic.codec("gptq", bits=3).encode(W)
    codes = codes_of(reopen(packet))
    assert codes is not None
    moved = (codes.index + 1).clamp(max=7)
    changed = codes.packet(moved, codes.scaled(torch.full(codes.lattice, 2.0)))
    assert len(changed) == len(packet)
    assert torch.equal(laconic.decode(changed), 2 * codes.weight(moved))


@pytest.mark.parametrize("name", ["ectcq", "rsq", "spqr", "qtip"])
def test_what_has_no_codes_of_its_own_says_so(name: str) -> None:
    assert codes_of(reopen(laconic.codec(name).fit(W).encode(W))) is None


def test_a_damaged_packet_is_refused() -> None:
    packet = bytearray(laconic.codec("gptq").encode(W))
    packet[-20] ^= 1
    with pytest.raises(laconic.CorruptStream):
        reopen(bytes(packet))
