"""What times of two models say of a third."""

from __future__ import annotations

import pytest

from laconic.bench.weights_scaling import LARGER, Llama, Parts, extrapolated, timed_parts
from laconic.core.errors import BadInput

SMALL = Llama(128, 384, 2, 8, 4, 2048, True)
MIDDLE = Llama(256, 768, 8, 4, 2, 4096, True)


def test_shapes_are_those_of_the_models() -> None:
    million = {name: model.n_parameters / 1e6 for name, model in LARGER.items()}
    assert million["Llama 3.2 1B"] == pytest.approx(1235.7, abs=0.1)
    assert million["Llama 3.1 8B"] == pytest.approx(8030.0, abs=0.3)
    one = LARGER["Llama 3.2 1B"]
    assert one.matrices.total() == 7 * 16 + 1 and one.matrices[2048, 8192] == 16
    assert one.inputs == {2048: 49, 8192: 16}  # q, k and v hear the same, as do gate and up


def test_config_json_gives_the_shapes() -> None:
    config = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 8,
              "num_key_value_heads": 4, "vocab_size": 2048, "tie_word_embeddings": True}  # fmt: skip
    assert Llama.of(config) == SMALL


def test_times_that_keep_to_the_law_are_continued_exactly() -> None:
    parts, target = Parts(1e-11, 2e-11, 3e-11), LARGER["Llama 3.2 1B"]
    dense = {m: parts.of(m, 65_536, 4.0) for m in (SMALL, MIDDLE, target)}

    def seconds(m: Llama) -> float:
        return 5.0 + 2e-5 * m.n_parameters + dense[m]

    found = extrapolated([(SMALL, seconds(SMALL)), (MIDDLE, seconds(MIDDLE))], target, dense)
    assert found == pytest.approx(seconds(target), rel=1e-9)


def test_parts_grow_with_the_width_of_the_blocks() -> None:
    parts = Parts(1e-11, 2e-11, 3e-11)
    wide = Llama(512, 1536, 2, 4, 2, 4096, True)  # about as many parameters in blocks of twice the width
    assert wide.n_parameters == pytest.approx(MIDDLE.n_parameters, rel=0.2)
    for alone in (Parts(0, 2e-11, 0), Parts(0, 0, 3e-11)):
        assert alone.of(wide, 1000, 4.0) > 1.5 * alone.of(MIDDLE, 1000, 4.0)
    assert parts.of(MIDDLE, 2000, 4.0) - parts.of(MIDDLE, 1000, 4.0) == pytest.approx(
        1000e-11 * sum(n * k**2 for k, n in MIDDLE.inputs.items())
    )


def test_two_sizes_are_needed() -> None:
    with pytest.raises(BadInput, match="two that differ"):
        extrapolated([(SMALL, 1.0), (SMALL, 2.0)], MIDDLE, {SMALL: 0.0, MIDDLE: 0.0})


def test_parts_are_measured() -> None:
    parts = timed_parts(128, 1)
    assert all(0 < t < 1e-5 for t in (parts.moments, parts.factors, parts.feedback))
