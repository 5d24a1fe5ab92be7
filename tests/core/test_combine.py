"""The combinators and the kinds, on two tiny stages whose behaviour is plain to see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from laconic.core import registry
from laconic.core.combine import (
    Rule,
    chain,
    conditional,
    error_feedback,
    partition,
    predictive,
    residual,
)
from laconic.core.errors import BadConfig, CorruptStream, ModelMismatch, NotFitted
from laconic.core.packet import Codec, decode, info
from laconic.core.stage import Kind, Leaf, Stage, Stats, Symbols, encoder_only, learned


@dataclass(frozen=True)
class Step(Stage):
    """Rounds to multiples of `step`; the symbols are unbounded."""

    step: float = 1.0
    takes: ClassVar[Kind] = Kind.ARRAY
    gives: ClassVar[Kind] = Kind.SYMBOLS

    def encode(self, x: Any) -> Any:
        return Symbols(torch.round(x / self.step).to(torch.int32).numpy(), 0), {}

    def decode(self, y: Symbols, side: Any) -> Any:
        return torch.from_numpy(y.index.astype(np.float32)) * self.step


@dataclass(frozen=True)
class Raw(Stage):
    """Symbols as they are; `given` sets what the coder adds to each of them."""

    context: Any = encoder_only()
    takes: ClassVar[Kind] = Kind.SYMBOLS
    gives: ClassVar[Kind] = Kind.BYTES
    side: ClassVar[dict[str, Leaf]] = {"shape": Leaf("int64", "header")}

    def given(self, context: Any) -> Raw:
        return self.replace(context=context)

    def _offset(self) -> Any:
        return 0 if self.context is None else self.context.to(torch.int32).numpy()

    def encode(self, x: Symbols) -> Any:
        return (x.index - self._offset()).astype(np.int32).tobytes(), {"shape": np.array(x.index.shape)}

    def decode(self, y: bytes, side: Any) -> Symbols:
        if len(y) != 4 * np.prod(side["shape"]):
            raise CorruptStream("length")
        return Symbols(np.frombuffer(y, np.int32).reshape(side["shape"]) + self._offset(), 0)


@dataclass(frozen=True)
class Mean(Stage):
    """Subtracts a learned mean."""

    mean: np.ndarray | None = learned("float16", "codebooks")
    takes: ClassVar[Kind] = Kind.ARRAY
    gives: ClassVar[Kind] = Kind.ARRAY

    def fit(self, x: Any, stats: Stats | None = None) -> Mean:
        return self.replace(mean=x.reshape(-1, x.shape[-1]).mean(0))

    def encode(self, x: Any) -> Any:
        return x - torch.from_numpy(self.mean.astype(np.float32)), {}

    def decode(self, y: Any, side: Any) -> Any:
        return y + torch.from_numpy(self.mean.astype(np.float32))


@dataclass(frozen=True)
class Scale8(Stage):
    """x -> 8 x: turns the hyper codec's reconstruction into the units of the main quantizer."""

    takes: ClassVar[Kind] = Kind.ARRAY
    gives: ClassVar[Kind] = Kind.ARRAY

    def encode(self, x: Any) -> Any:
        return 8 * x, {}


@dataclass(frozen=True)
class Big(Rule):
    """Values of magnitude above `threshold` apart from the rest."""

    threshold: float = 3.0
    side: ClassVar[dict[str, Leaf]] = {"where": Leaf("uint8", "indices")}

    def split(self, x: Any) -> Any:
        big = x.abs() > self.threshold
        return (torch.where(big, 0.0, x), x[big]), {"where": np.packbits(big.numpy())}

    def join(self, shares: Any, side: Any) -> Any:
        x = shares[0].clone()
        big = torch.from_numpy(np.unpackbits(side["where"], count=x.numel()).astype(bool)).reshape(x.shape)
        x[big] = shares[1]
        return x


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    for cls in (Step, Raw, Mean, Big, Scale8):
        monkeypatch.setitem(registry.PARTS, f"test-{cls.__name__.lower()}", f"{__name__}:{cls.__name__}")
    registry._names.cache_clear()
    yield
    registry._names.cache_clear()


X = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)) * 2
CODER = chain(Step(0.5), Raw())


def test_kinds_are_checked_when_a_chain_is_built() -> None:
    with pytest.raises(BadConfig, match="gives symbols but Step takes array"):
        chain(Step(), Step())
    with pytest.raises(BadConfig, match="ends in bytes"):
        Codec(Step())
    with pytest.raises(BadConfig, match="residual needs a stage array->bytes"):
        residual(Step())
    with pytest.raises(BadConfig):
        chain()


def test_push_refuses_by_default_and_lets_nothing_pass_in_silence() -> None:
    stats = Stats(hessian=torch.eye(50))
    with pytest.raises(BadConfig, match="Mean cannot say what hessian become"):
        chain(Mean(), Mean(), Step(), Raw()).fit(X, stats)
    assert Mean().push(Stats()) == Stats()


def test_fit_returns_a_new_object() -> None:
    codec = Codec(chain(Mean(), Step(), Raw()))
    fitted = codec.fit(X)
    assert codec.stage.stages[0].mean is None and fitted.stage.stages[0].mean is not None
    assert fitted.stage.stages[0].mean.dtype == np.float16
    with pytest.raises(NotFitted, match="stages.0.mean"):
        codec.encode(X)


def test_learned_arrays_inside_and_outside_of_packets() -> None:
    codec = Codec(chain(Mean(), Step(0.1), Raw())).fit(X)
    inside, outside = codec.encode(X), codec.encode(X, embed=False)
    assert info(inside).ledger.by_role()["codebooks"] == 100
    assert "codebooks" not in info(outside).ledger.by_role()
    assert info(outside).packet_bytes == len(outside)
    assert torch.equal(decode(inside), decode(outside, model=codec))
    with pytest.raises(ModelMismatch):
        decode(outside)
    with pytest.raises(ModelMismatch):
        decode(outside, model=codec.fit(X + 1))


def test_residual_adds_up() -> None:
    packet = Codec(residual(CODER, chain(Step(0.01), Raw()))).encode(X)
    assert (decode(packet) - X).abs().max() <= 0.005 + 1e-6
    assert {s.path for s in info(packet).ledger.sections} == {"0.payload", "0.1.shape", "1.payload", "1.1.shape"}


def test_partition_joins() -> None:
    packet = Codec(partition(Big(2.0), CODER, chain(Step(0.001), Raw()))).encode(X)
    back, big = decode(packet), X.abs() > 2
    assert (back - X)[big].abs().max() < 0.001 < (back - X)[~big].abs().max() <= 0.251
    assert info(packet).ledger.by_role()["indices"] == -(-X.numel() // 8)


def test_partition_counts_its_shares() -> None:
    with pytest.raises(BadConfig, match="2 shares for 1 codecs"):
        Codec(partition(Big(), CODER)).encode(X)


def test_conditional_tells_the_coder_what_the_decoder_knows() -> None:
    codec = Codec(conditional(CODER, Scale8(), chain(Step(0.125), Raw())))
    packet = codec.fit(X).encode(X)
    assert (decode(packet) - X).abs().max() <= 0.0626
    main = [s for s in info(packet).ledger.sections if s.path == "main.payload"]
    assert main[0].data_bytes == 4 * X.numel()


def test_conditional_wants_a_coder_that_listens() -> None:
    with pytest.raises(BadConfig, match="takes no context"):
        conditional(CODER, Scale8(), chain(residual(CODER)))


def test_error_feedback_loses_nothing_in_the_long_run() -> None:
    x = torch.full((40, 5), 0.13)
    coarse = chain(Step(1.0), Raw())
    assert decode(Codec(coarse).encode(x)).abs().sum() == 0
    back = decode(Codec(error_feedback(coarse)).encode(x))
    assert ((back - x).sum(0).abs() <= 0.5).all()


def test_predictive_is_closed_loop() -> None:
    x = torch.cumsum(torch.full((400, 3), 0.3), 0)
    back = decode(Codec(predictive(chain(Step(1.0), Raw()))).encode(x))
    assert (back - x).abs().max() <= 0.5 + 1e-4


@pytest.mark.parametrize("make", [error_feedback, predictive])
def test_sequences_refuse_lies_about_their_length(make: Any) -> None:
    stage = make(CODER)
    y, side = stage.encode(X)
    for n in (0, -1, 5, 7, 1 << 40):
        with pytest.raises(CorruptStream):
            stage.decode(y, {"length": np.array([n])})


def test_a_rewritten_configuration_is_refused_by_name() -> None:
    data = registry.config(CODER)
    with pytest.raises(BadConfig, match="did you mean"):
        registry.build({**data, "part": "chian"})
    with pytest.raises(BadConfig, match="did you mean"):
        registry.build({**data, "stage": []})
    with pytest.raises(BadConfig, match="lacks stages"):
        registry.build({"part": "chain"})
    with pytest.raises(BadConfig, match="version"):
        registry.build({**data, "version": 9})
    deep: Any = data
    for _ in range(30):
        deep = {"part": "chain", "stages": [deep]}
    with pytest.raises(BadConfig, match="deep"):
        registry.build(deep)
