"""Combinators: the only ways in which stages are put together.

chain(a, b, …)                 x ─a─b─▶ bytes
residual(a, b, …)              x ─a─▶ bytes, x − x̂ ─b─▶ bytes, …              x̂ is the sum
partition(rule, a, b, …)       rule splits x; each share has its own codec
conditional(hyper, context, main)   main's coder is told context(ẑ), which the decoder has before it needs it
predictive(predictor, codec)   along axis 0: the codec sees x_t − prediction(x̂_{t−1})
error_feedback(codec)          along axis 0: the codec sees x_t + what it lost so far
error_control(codec, eta)      along axis 0: the codec sees x_t − x̂_{t−1} + eta · what it lost so far
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from .errors import BadConfig, BadInput, CorruptStream, claim
from .stage import Kind, Leaf, Levels, Part, Side, Stage, Stats
from .wire import Reader, read_sections, write_sections, write_varint


def need(stage: Stage, takes: Kind, gives: Kind | None, where: str) -> None:
    """Refuse a stage of the wrong kinds."""
    if stage.takes is not takes or (gives is not None and stage.gives is not gives):
        wants = f"{takes.value}->{gives.value if gives else 'anything'}"
        raise BadConfig(
            f"{where} needs a stage {wants}; {type(stage).__name__} is {stage.takes.value}->{stage.gives.value}"
        )


@dataclass(frozen=True)
class Chain(Stage):
    """Stages one behind the other; refuses a mismatch of kinds when it is built."""

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if not self.stages:
            raise BadConfig("a chain of no stages; give at least one")
        for a, b in zip(self.stages, self.stages[1:], strict=False):
            if a.gives is not b.takes:
                raise BadConfig(
                    f"{type(a).__name__} gives {a.gives.value} but {type(b).__name__} takes {b.takes.value}; "
                    "put a stage between them that joins the two"
                )

    takes = property(lambda self: self.stages[0].takes)  # type: ignore[assignment]
    gives = property(lambda self: self.stages[-1].gives)  # type: ignore[assignment]
    lossless = property(lambda self: all(s.lossless for s in self.stages))  # type: ignore[assignment]
    deterministic = property(lambda self: all(s.deterministic for s in self.stages))  # type: ignore[assignment]
    learns_exactly = property(lambda self: all(s.learns_exactly for s in self.stages))  # type: ignore[assignment]
    accepts = property(lambda self: self.stages[0].accepts)  # type: ignore[assignment]
    casts = property(lambda self: self.stages[0].casts)  # type: ignore[assignment]
    payload_role = property(lambda self: self.stages[-1].payload_role)  # type: ignore[assignment]
    keeps_rate = property(lambda self: self.stages[-1].keeps_rate)  # type: ignore[assignment]

    def children(self) -> Mapping[str, Stage]:
        return {str(i): s for i, s in enumerate(self.stages)}

    def fit(self, x: Any, stats: Stats | None = None) -> Self:
        fitted = list(self.stages)
        last = max((i for i, s in enumerate(fitted) if type(s).fit is not Stage.fit), default=-1)
        for i in range(last + 1):  # the stages behind the last that learns need not see the data
            fitted[i] = fitted[i].fit(x, stats)
            if i < last:
                x, _ = fitted[i].encode(x)
                stats = fitted[i].push(stats) if stats is not None else None
        return self.replace(stages=tuple(fitted))

    def push(self, stats: Stats) -> Stats:
        for stage in self.stages:
            stats = stage.push(stats)
        return stats

    def encode(self, x: Any) -> tuple[Any, Side]:
        side: Side = {}
        for i, stage in enumerate(self.stages):
            x, side[str(i)] = stage.encode(x)
        return x, side

    def decode(self, y: Any, side: Side) -> Any:
        for i in reversed(range(len(self.stages))):
            y = self.stages[i].decode(y, side[str(i)])
        return y

    def levels(self, y: Any, side: Side) -> Levels | None:
        for i in reversed(range(len(self.stages))):
            found = self.stages[i].levels(y, side[str(i)])
            if found is not None:
                turns = (*self.stages[:i], *found.turns)
                return found._replace(turns=turns) if all(s.orthogonal for s in turns) else None
            if self.stages[i].takes is Kind.ARRAY:
                return None
            y = self.stages[i].decode(y, side[str(i)])
        return None

    def given(self, context: Any) -> Self:
        """Tell the last stage, a coder, what the decoder already knows."""
        return self.replace(stages=(*self.stages[:-1], self.stages[-1].given(context)))  # type: ignore[attr-defined]


def chain(*stages: Stage) -> Chain:
    """`Chain` of the stages, nested chains laid flat."""
    flat: list[Stage] = []
    for s in stages:
        flat.extend(s.stages if isinstance(s, Chain) else (s,))
    return Chain(tuple(flat))


def _encode_child(stage: Stage, x: Any) -> Side:
    """A child codec's output as side information of its combinator."""
    y, side = stage.encode(x)
    return {**side, "payload": y}


def _decode_child(stage: Stage, side: Side) -> Any:
    return stage.decode(side["payload"], {k: v for k, v in side.items() if k != "payload"})


@dataclass(frozen=True)
class _Combinator(Stage):
    """What combinators of whole codecs share: they take an array, and their bytes lie with the children."""

    takes: ClassVar[Kind] = Kind.ARRAY
    gives: ClassVar[Kind] = Kind.BYTES
    holds_codecs: ClassVar[bool] = True
    payload_role: ClassVar[str | None] = None


@dataclass(frozen=True)
class Residual(_Combinator):
    """Each codec takes what the ones before it left over; the reconstruction is the sum (Gray 1984; multi-stage VQ)."""

    codecs: tuple[Stage, ...]

    def __post_init__(self) -> None:
        for c in self.codecs:
            need(c, Kind.ARRAY, Kind.BYTES, "residual")

    def children(self) -> Mapping[str, Stage]:
        return {str(i): s for i, s in enumerate(self.codecs)}

    def fit(self, x: Any, stats: Stats | None = None) -> Self:
        fitted = []
        for codec in self.codecs:
            codec = codec.fit(x, stats)
            fitted.append(codec)
            x = x - _decode_child(codec, _encode_child(codec, x))
        return self.replace(codecs=tuple(fitted))

    def encode(self, x: Any) -> tuple[bytes, Side]:
        side: Side = {}
        for i, codec in enumerate(self.codecs):
            side[str(i)] = _encode_child(codec, x)
            x = x - _decode_child(codec, side[str(i)])
        return b"", side

    def decode(self, y: bytes, side: Side) -> Any:
        shares = [_decode_child(codec, side[str(i)]) for i, codec in enumerate(self.codecs)]
        if len({s.shape for s in shares}) != 1:
            raise CorruptStream(f"residual shares have shapes {[tuple(s.shape) for s in shares]}; they must agree")
        return sum(shares[1:], shares[0])


def residual(*codecs: Stage) -> Residual:
    """`Residual` of the codecs."""
    return Residual(codecs)


@dataclass(frozen=True)
class Rule(Part):
    """How `partition` splits an array: `split(x) -> (shares, side)`, `join(shares, side) -> x`."""

    side: ClassVar[Mapping[str, Leaf]] = {}

    def fit(self, x: Any, stats: Stats | None = None) -> Self:
        """Learn thresholds or an order from `x`."""
        return self

    def push(self, x: Any, stats: Stats) -> tuple[Stats | None, ...]:
        """The statistics of each share; the default gives none to any."""
        return (None,) * len(self.split(x)[0])

    def split(self, x: Any) -> tuple[tuple[Any, ...], Side]:
        """x -> (one array per codec, side)."""
        raise NotImplementedError

    def join(self, shares: tuple[Any, ...], side: Side) -> Any:
        """The inverse of `split`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Partition(_Combinator):
    """A rule splits the array (outliers from the rest, keys from values, a window from the past); each share has a codec."""

    rule: Rule
    codecs: tuple[Stage, ...]

    def __post_init__(self) -> None:
        for c in self.codecs:
            need(c, Kind.ARRAY, Kind.BYTES, "partition")

    side = property(lambda self: self.rule.side)  # type: ignore[assignment]

    def children(self) -> Mapping[str, Stage]:
        return {str(i): s for i, s in enumerate(self.codecs)}

    def fit(self, x: Any, stats: Stats | None = None) -> Self:
        rule = self.rule.fit(x, stats)
        shares = self._shares(rule, x)
        below = rule.push(x, stats) if stats is not None else (None,) * len(shares)
        for i, (c, s) in enumerate(zip(self.codecs, shares, strict=True)):
            if not s.numel() and any(a is None for _, a in c.arrays().values()):
                raise BadInput(f"{type(rule).__name__} leaves share {i} of an array {tuple(x.shape)} empty, and its codec "
                               "has to learn from it; fit to a larger array")  # fmt: skip
        codecs = tuple(c.fit(s, b) if s.numel() else c for c, s, b in zip(self.codecs, shares, below, strict=True))
        return self.replace(rule=rule, codecs=codecs)

    def encode(self, x: Any) -> tuple[bytes, Side]:
        shares, side = self.rule.split(x)
        if len(shares) != len(self.codecs):
            raise BadConfig(f"{type(self.rule).__name__} makes {len(shares)} shares for {len(self.codecs)} codecs")
        out = {str(i): _encode_child(c, s) for i, (c, s) in enumerate(zip(self.codecs, shares, strict=True))}
        return b"", {**side, **out}

    def decode(self, y: bytes, side: Side) -> Any:
        shares = tuple(_decode_child(c, side[str(i)]) for i, c in enumerate(self.codecs))
        return self.rule.join(shares, {k: side[k] for k in self.rule.side})

    def _shares(self, rule: Rule, x: Any) -> tuple[Any, ...]:
        shares, _ = rule.split(x)
        if len(shares) != len(self.codecs):
            raise BadConfig(f"{type(rule).__name__} makes {len(shares)} shares for {len(self.codecs)} codecs")
        return shares


def partition(rule: Rule, *codecs: Stage) -> Partition:
    """`Partition` of an array by `rule` into one share per codec."""
    return Partition(rule, codecs)


@dataclass(frozen=True)
class Conditional(_Combinator):
    """A small codec first; what it decodes to tells the main codec's coder which tables to use (a hyperprior).

        x ─ hyper ─▶ bytes ─ hyper.decode ─▶ ẑ ─ context ─▶ table index per symbol ─┐
        x ─ main (… quantizer, coder.given(table index)) ─▶ bytes ◀─────────────────┘

    Source: Ballé et al. 2018 (1802.01436), Fig. 2. Differs: the hyper codec sees x itself, so `hyper` is any codec
    whose reconstruction describes the scale of x.
    """

    hyper: Stage
    context: Stage
    main: Chain

    def __post_init__(self) -> None:
        need(self.hyper, Kind.ARRAY, Kind.BYTES, "conditional's hyper")
        need(self.context, Kind.ARRAY, Kind.ARRAY, "conditional's context")
        need(self.main, Kind.ARRAY, Kind.BYTES, "conditional's main")
        if not hasattr(self.main.stages[-1], "given"):
            raise BadConfig(
                f"{type(self.main.stages[-1]).__name__} takes no context; end the chain in a coder with `given`"
            )

    def children(self) -> Mapping[str, Stage]:
        return {"hyper": self.hyper, "main": self.main}

    def fit(self, x: Any, stats: Stats | None = None) -> Self:
        hyper = self.hyper.fit(x)
        seen = _decode_child(hyper, _encode_child(hyper, x))
        context = self.context.fit(seen)
        return self.replace(hyper=hyper, context=context, main=self.main.given(context.encode(seen)[0]).fit(x, stats))

    def encode(self, x: Any) -> tuple[bytes, Side]:
        side = _encode_child(self.hyper, x)
        main = self.main.given(self.context.encode(_decode_child(self.hyper, side))[0])
        return b"", {"hyper": side, "main": _encode_child(main, x)}

    def decode(self, y: bytes, side: Side) -> Any:
        context, _ = self.context.encode(_decode_child(self.hyper, side["hyper"]))
        return _decode_child(self.main.given(context), side["main"])


def conditional(hyper: Stage, context: Stage, main: Chain) -> Conditional:
    """`Conditional` coding of `main` on what `hyper` sent."""
    return Conditional(hyper, context, main)


@dataclass(frozen=True)
class _Sequence(_Combinator):
    """Codes the slices of axis 0 one after the other with one codec and a state that the decoder can follow."""

    codec: Stage

    payload_role: ClassVar[str | None] = "codes"
    side: ClassVar[Mapping[str, Leaf]] = {"length": Leaf("int64", "header")}

    def __post_init__(self) -> None:
        need(self.codec, Kind.ARRAY, Kind.BYTES, type(self).__name__)

    def start(self, x: Any) -> Any:
        """The state before the first slice; x: the first slice."""
        raise NotImplementedError

    def step(self, state: Any, x: Any) -> tuple[Side, Any]:
        """(state, slice) -> (the codec's output, next state)."""
        raise NotImplementedError

    def unstep(self, state: Any, side: Side) -> tuple[Any, Any]:
        """(state, the codec's output) -> (reconstructed slice, next state)."""
        raise NotImplementedError

    def fit(self, x: Any, stats: Stats | None = None) -> Self:
        return self.replace(codec=self.codec.fit(x[0], stats))

    def encode(self, x: Any) -> tuple[bytes, Side]:
        import numpy as np

        if x.ndim < 2:
            raise BadInput(
                f"a sequence of shape {tuple(x.shape)}; axis 0 is time, and its slices have an axis of their own"
            )
        frames = bytearray()
        state = self.start(x[0])
        for slice_ in x:
            side, state = self.step(state, slice_)
            frame = write_sections(self.codec, side, checksum=False)
            write_varint(frames, len(frame))
            frames += frame
        return bytes(frames), {"length": np.array([len(x)], dtype=np.int64)}

    def decode(self, y: bytes, side: Side) -> Any:
        import torch

        n = int(side["length"].ravel()[0]) if side["length"].size == 1 else -1
        if not 0 < n <= len(y):
            raise CorruptStream(f"a sequence of {n} frames in {len(y)} bytes")
        reader, state, n_bytes = Reader(y), None, 0
        out: list[Any] = []
        for _ in range(n):
            frame = Reader(reader.take(reader.varint()))
            slice_, state = self.unstep(state, read_sections(self.codec, frame, checksum=False))
            frame.finish()
            n_bytes += slice_.numel() * slice_.element_size()
            claim(n_bytes, "a sequence")
            if out and slice_.shape != out[0].shape:
                raise CorruptStream(f"a frame of shape {tuple(slice_.shape)} behind one of {tuple(out[0].shape)}")
            out.append(slice_)
        reader.finish()
        return torch.stack(out)


@dataclass(frozen=True)
class _Feedback(_Sequence):
    """What feeds an error back. Its arithmetic stands alone, so that what lies between target and Δ may be a network.

    state ─ aim(state, x) ─▶ target ─ codec ─▶ Δ ─ settle(state, x, target, Δ) ─▶ next state    each sender
    seen ─ follow(seen, Δ) ─▶ x̂, next seen                                                        who decodes; Δ may be a mean
    """

    def aim(self, state: Any, x: Any) -> Any:
        """What is coded for x."""
        raise NotImplementedError

    def settle(self, state: Any, x: Any, target: Any, sent: Any) -> Any:
        """The state once `sent` is what the codec gives for the target."""
        raise NotImplementedError

    def follow(self, seen: Any, sent: Any) -> tuple[Any, Any]:
        """(what the decoder keeps, None at first; what arrived) -> (reconstruction, what it keeps from now on)."""
        raise NotImplementedError

    def step(self, state: Any, x: Any) -> tuple[Side, Any]:
        target = self.aim(state, x)
        side = _encode_child(self.codec, target)
        return side, self.settle(state, x, target, _decode_child(self.codec, side))

    def unstep(self, state: Any, side: Side) -> tuple[Any, Any]:
        sent = _decode_child(self.codec, side)
        if state is not None and state.shape != sent.shape:
            raise CorruptStream(f"a frame of shape {tuple(sent.shape)} behind one of {tuple(state.shape)}")
        return self.follow(state, sent)


@dataclass(frozen=True)
class ErrorFeedback(_Feedback):
    """Each slice is coded together with what the codec lost on the slices before it.

    State: the error memory e, starting at 0. y_t = C(x_t + e_t), e_{t+1} = x_t + e_t − ŷ_t.
    Source: Seide et al. 2014; Karimireddy et al. 2019 (1901.09847), Alg. 2. The decoder needs no memory.
    """

    def start(self, x: Any) -> Any:
        return x * 0

    def aim(self, state: Any, x: Any) -> Any:
        return x + state

    def settle(self, state: Any, x: Any, target: Any, sent: Any) -> Any:
        return target - sent

    def follow(self, seen: Any, sent: Any) -> tuple[Any, Any]:
        return sent, None


def error_feedback(codec: Stage) -> ErrorFeedback:
    """`ErrorFeedback` around `codec`."""
    return ErrorFeedback(codec)


@dataclass(frozen=True)
class ErrorControl(_Feedback):
    """Each slice is coded as a difference to what the decoder has, with the share `eta` of what was lost so far.

        Δ_t = C(η e_t + x_t − h_t),   h_{t+1} = h_t + Δ_t,   e_{t+1} = e_t + x_t − h_{t+1},   x̂_t = h_{t+1}

    State: the pair (e, h), from 0. Where x settles, so do h and Δ, whatever the codec loses of a single slice; e keeps noise from
    staying in h. η = 0 is EF21 (Richtárik, Sokolov & Fatkhullin 2021, 2106.05203).
    Source: Gao, Islamov & Stich 2024, EControl (2311.05645), Alg. 2. Differs: h_0 = 0, where EF21 begins with C(x_0).
    """

    eta: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise BadConfig(f"eta {self.eta}; 0 (EF21) to 1 is right")

    def start(self, x: Any) -> Any:
        return x * 0, x * 0

    def aim(self, state: Any, x: Any) -> Any:
        e, h = state
        return self.eta * e + x - h

    def settle(self, state: Any, x: Any, target: Any, sent: Any) -> Any:
        e, h = state
        h = h + sent
        return e + x - h, h

    def follow(self, seen: Any, sent: Any) -> tuple[Any, Any]:
        now = sent if seen is None else seen + sent
        return now, now


def error_control(codec: Stage, eta: float = 0.1) -> ErrorControl:
    """`ErrorControl` around `codec`."""
    return ErrorControl(codec, eta)


@dataclass(frozen=True)
class Predictive(_Sequence):
    """Closed-loop prediction along axis 0 (DPCM): the codec sees x_t − ρ·x̂_{t−1}.

    State: the previous reconstruction. Source: Jayant & Noll 1984, ch. 6 (closed loop, so errors do not pile up).
    """

    rho: float = 1.0

    def start(self, x: Any) -> Any:
        return x * 0

    def step(self, state: Any, x: Any) -> tuple[Side, Any]:
        side = _encode_child(self.codec, x - self.rho * state)
        return side, self.rho * state + _decode_child(self.codec, side)

    def unstep(self, state: Any, side: Side) -> tuple[Any, Any]:
        delta = _decode_child(self.codec, side)
        if state is not None and state.shape != delta.shape:
            raise CorruptStream(f"a frame of shape {tuple(delta.shape)} behind one of {tuple(state.shape)}")
        now = delta if state is None else self.rho * state + delta
        return now, now

    def fit(self, x: Any, stats: Stats | None = None) -> Self:
        """ρ is a setting; the codec learns from open-loop differences."""
        return self.replace(codec=self.codec.fit(x[1] - self.rho * x[0] if len(x) > 1 else x[0], stats))


def predictive(codec: Stage, rho: float = 1.0) -> Predictive:
    """`Predictive` coding with `codec` on the innovations."""
    return Predictive(codec, rho)
