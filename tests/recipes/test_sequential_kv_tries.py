from __future__ import annotations

import gc
import math
from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from laconic.core.errors import BadConfig, CodecError, CorruptStream, ModelMismatch
from laconic.kv import cache as make_cache
from laconic.sources.kv.tries import DeltaCoder, PrefixTrie, TokenCoder

from .caches import IDS, llama

ONE = IDS[0].tolist()
OTHER = [*ONE[:150], *IDS[1, 150:].tolist()]  # shares two whole groups with ONE


def trie(max_bytes: int = 1 << 30) -> PrefixTrie:
    return PrefixTrie(lambda: make_cache(llama(), recipe="sequential-kv-tries", bits=4), max_bytes)


@torch.inference_mode()
def fed(past: object, ids: list[int], n: int) -> torch.Tensor:
    return llama()(input_ids=torch.tensor([ids[n:]]), past_key_values=past, use_cache=True).logits.log_softmax(-1)


def grown(max_bytes: int = 1 << 30) -> tuple[PrefixTrie, object]:
    made = trie(max_bytes)
    past, n = made.session(ONE)
    assert n == 0
    fed(past, ONE, 0)
    made.insert(ONE, past, [-3.0] * len(ONE))
    return made, past


def test_a_known_prefix_is_neither_computed_nor_kept_twice() -> None:
    made, first = grown()
    alone = made.nbytes
    second, n = made.session(OTHER)
    assert n == 128 and second.get_seq_length() == 128
    ours, theirs = (c.layers[1].store.keys.runs[0].coded[0] for c in (first, second))
    assert ours is theirs
    seen = fed(second, OTHER, n)
    fresh = fed(make_cache(llama(), recipe="sequential-kv-tries", bits=4), OTHER, 0)[:, n:]
    assert float((fresh.exp() * (fresh - seen)).sum(-1).mean()) < 0.1
    assert made.insert(OTHER, second, [-3.0] * len(OTHER)) == 128
    assert alone < made.nbytes < 1.6 * alone
    assert made.insert(OTHER, second, [-3.0] * len(OTHER)) == 0


def test_references_are_counted() -> None:
    made, _ = grown()
    second, _ = made.session(OTHER)
    assert sorted(n.refs for n in made.nodes()) == [0, 0, 1, 1]
    del second
    gc.collect()
    assert [n.refs for n in made.nodes()] == [0] * 4


def test_the_least_probable_prefix_goes_first_and_none_that_is_read() -> None:
    made, _ = grown()
    second, n = made.session(OTHER)
    fed(second, OTHER, n)
    made.insert(OTHER, second, [-9.0] * len(OTHER))
    del second
    gc.collect()
    reader, _ = made.session(ONE)
    size = max(n.nbytes for n in made.nodes())
    made.max_bytes = 3 * size
    made.evict()
    left = {tuple(n.tokens) for n in made.nodes()}
    assert tuple(OTHER[128:192]) not in left and tuple(ONE[128:192]) in left
    made.max_bytes = 0
    made.evict()
    assert {n.refs for n in made.nodes()} == {1}
    assert reader.get_seq_length() == 256


def test_the_distance_is_the_surprise_of_what_is_common() -> None:
    made, past = grown()
    other, n = made.session(OTHER)
    fed(other, OTHER, n)
    made.insert(OTHER, other, [-3.0] * len(OTHER))
    assert made.distance(ONE, OTHER) == 3.0 * 128 and made.distance(ONE, ONE[::-1]) == 0
    with pytest.raises(BadConfig, match="sinks"):
        fed(make_cache(llama(), recipe="sequential-kv-tries", sinks=4), ONE, 0)


def test_tokens_under_the_model_take_what_the_model_says() -> None:
    coder, ids = TokenCoder(llama(), 0), ONE[:60]
    data = coder.encode(ids)
    with torch.inference_mode():
        p = llama()(input_ids=torch.tensor([[0, *ids]])).logits[0, :-1].log_softmax(-1)
    bits = -float(p[range(60), ids].sum()) / math.log(2)
    assert 8 * (len(data) - 8) == pytest.approx(bits, abs=16)
    assert coder.decode(data) == ids


def test_damaged_tokens_and_another_model() -> None:
    coder = TokenCoder(llama(), 0)
    data = coder.encode(ONE[:20])
    with pytest.raises((ModelMismatch, CorruptStream), match="model"):
        TokenCoder(llama(4), 0).decode(data)
    with pytest.raises(CorruptStream):
        coder.decode(data[:5])
    for at in range(8, len(data)):
        with pytest.raises(CodecError):
            coder.decode(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])


@cache
def sure() -> Any:
    """A model that is sure of itself, as those are whose texts can be predicted."""
    model = deepcopy(llama())
    with torch.no_grad():
        model.lm_head.weight.mul_(15)
    return model


def likely(n: int) -> list[int]:
    """A text drawn from the model."""
    g, ids, out = torch.Generator().manual_seed(0), [0], []
    for _ in range(n):
        with torch.inference_mode():
            p = sure()(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1)
        ids.append(int(torch.multinomial(p, 1, generator=g)))
        out.append(ids[-1])
    return out


def test_delta_coding_takes_fewer_bits_at_no_more_distortion_where_the_model_predicts() -> None:
    """And the tokens themselves take fewer still: the first layer says no more than they do."""
    ids = likely(60)
    delta, direct = DeltaCoder(sure(), 0, step=0.25), DeltaCoder(sure(), 0, step=0.25, top=0)
    x = delta.table()[ids]
    found = {}
    for name, coder in (("delta", delta), ("direct", direct)):
        data = coder.encode(x)
        back = coder.decode(data)
        assert torch.equal(coder.decode(data), back)
        found[name] = len(data), float((x - back).square().sum() / x.square().sum())
    assert found["delta"][1] < 1.2 * found["direct"][1]
    assert found["delta"][0] < 0.9 * found["direct"][0]
    assert len(TokenCoder(sure(), 0).encode(ids)) < 0.1 * found["delta"][0]


def test_damaged_deltas() -> None:
    coder = DeltaCoder(llama(), 0, top=0)
    data = coder.encode(coder.table()[ONE[:5]])
    for bad in (b"", data[:1], data[: len(data) // 2], data + b"\x01\x02\x03\x04\x05"):
        with pytest.raises(CodecError):
            coder.decode(bad)
    assert coder.decode(coder.encode(coder.table()[:0])).shape == (0, 64)
    assert np.isfinite(coder.decode(data).numpy()).all()
