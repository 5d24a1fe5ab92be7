"""Compressed language models judged against their original: the same windows, the same items, the reference's own noise.

Perplexity alone flatters: a model whose errors cancel on average scores like one without errors. So every model is also
judged by what changed: KL(reference ‖ model) a token with its tail, the share of most likely tokens that stayed, items that
flipped. Beside them stands the reference run in bfloat16, judged by the same code: what is below that is noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ...core.errors import BadConfig, BadInput
from ...measure import Interval, kl_divergence, same_top1
from .contestants import (
    Contestant,
    Model,
    available,
    check_words,
    distinct,
    enter,
    in_bfloat16,
    tokenizer_of,
    vocabulary,
)
from .estimates import Estimate, Resampled, share
from .items import Answers, Sentences, read_choices, read_pairs
from .outcomes import ChoiceScore, PairScore, score_choices, score_pairs
from .reading import Reader, Window, read_text, spread

__all__ = [
    "Contestant",
    "Evaluation",
    "ModelScore",
    "Settings",
    "TextScore",
    "Verdict",
    "available",
    "evaluate",
    "judge",
    "text_score",
]

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Settings:
    """How much is judged. window: tokens with the prefix; windows: of all texts together, spread evenly over each.

    pairs: of each paradigm, the first; choices: in all, drawn by hash; noise: whether the reference is also judged in
    bfloat16; device: where models from files run.
    """

    window: int = 512
    windows: int = 64
    pairs: int = 40
    choices: int = 600
    noise: bool = True
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.window < 2 or min(self.windows, self.pairs, self.choices) < 1:
            raise BadConfig(f"{self}: use a window of 2 or more, and 1 or more of everything else")


@dataclass(frozen=True)
class TextScore:
    """A model on a text. Intervals: 95 %, windows resampled.

    Units: kl in nats a token, top1 a share of tokens; nats_added (a token) and bits_added (a byte) over the reference,
    paired by window; kl_median, kl_90, kl_99 are quantiles over tokens.
    """

    n_windows: int
    n_tokens: int
    n_bytes: int
    nats_per_token: Estimate
    nats_per_byte: Estimate
    bits_per_byte: Estimate
    perplexity: Estimate
    nats_added: Estimate
    bits_added: Estimate
    kl: Estimate
    kl_median: float
    kl_90: float
    kl_99: float
    top1: Estimate


@dataclass(frozen=True)
class ModelScore:
    """A model on everything. n_bytes: its weights as stored, None for one in memory; bits_per_parameter: of the reference's."""

    name: str
    n_bytes: int | None
    bits_per_parameter: float | None
    text: TextScore
    texts: dict[str, TextScore]
    pairs: PairScore | None
    choices: ChoiceScore | None


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found. noise: the reference with bfloat16 weights and activations, or None."""

    reference: ModelScore
    noise: ModelScore | None
    models: tuple[ModelScore, ...]
    n_parameters: int
    settings: Settings

    @property
    def rows(self) -> tuple[ModelScore, ...]:
        """All of them, the reference first."""
        return (self.reference, *([self.noise] if self.noise else []), *self.models)

    def as_json(self) -> dict[str, Any]:
        """Every number, and the settings."""
        return asdict(self)


def evaluate(
    reference: Model,
    models: Sequence[Model],
    texts: Mapping[str, str] | Sequence[str | PathLike[str]],
    *,
    pairs: str | PathLike[str] | None = None,
    choices: str | PathLike[str] | None = None,
    settings: Settings | None = None,
    tokenizer: Any = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Judge models against a reference, everything in float32 arithmetic.

    All models run side by side, window by window: no logits are kept, but every model is in memory at once. Tokens are those
    of the reference's tokenizer; every sequence begins with BOS.

    reference, models: model folders, .lac archives of one, .gguf files, or a `Contestant` with a module in memory (then
        give `tokenizer`). texts: {name: text}, or UTF-8 files. pairs: BLiMP. choices: BBQ.
    Raises BadInput: a text that is empty or not UTF-8, a folder that is no model, vocabularies that differ, logits that
        are not finite.

    Source: Dutta et al. 2024, "Accuracy is Not All You Need", arXiv:2407.09141 (KL and flips beside accuracy).
    """
    settings = settings or Settings()
    words = tokenizer if tokenizer is not None else tokenizer_of(reference)
    reader, named = Reader.of(words), _texts(texts)
    windows = {name: _windows(reader, name, text, settings, len(named)) for name, text in named.items()}
    found = [read_pairs(Path(pairs), settings.pairs)] if pairs is not None else []
    asked = [read_choices(Path(choices), settings.choices)] if choices is not None else []
    lanes = _lanes(reference, models, words, reader, settings)
    n_logits = vocabulary(lanes[0], reader.prefix)
    sentences, answers = [Sentences.of(p, reader) for p in found], [Answers.of(c, reader) for c in asked]

    per_lane = sum(len(w.ids) for ws in windows.values() for w in ws) + sum(s.n_tokens for s in (*sentences, *answers))
    ticker = _Ticker(progress, per_lane * len(lanes))
    traces = _walk(lanes, windows, ticker)
    rows = []
    for lane, trace in zip(lanes, traces, strict=True):
        text, by_text = _score_texts(trace, traces[0], windows)
        ticker.what = f"{lane.name}: items"
        rows.append(
            (lane, text, by_text, [s.outcomes(lane, n_logits, ticker.add) for s in sentences],
             [a.outcomes(lane, n_logits, ticker.add) for a in answers])
        )  # fmt: skip
    n = lanes[0].n_parameters
    scores = [
        ModelScore(
            lane.name,
            lane.n_bytes,
            None if lane.n_bytes is None else 8 * lane.n_bytes / n,
            text,
            by_text,
            score_pairs(found[0], right[0], rows[0][3][0]) if found else None,
            score_choices(asked[0], chosen[0], rows[0][4][0]) if asked else None,
        )
        for lane, text, by_text, right, chosen in rows
    ]
    noise = scores[1] if settings.noise else None
    return Evaluation(scores[0], noise, tuple(scores[1 + settings.noise :]), n, settings)


@dataclass(frozen=True)
class Verdict:
    """Means over all predicted tokens, and a 95 % interval of the KL over windows.

    bits_per_byte, reference_bits_per_byte: cross entropy of the text. kl: KL(original ‖ compressed), nats a token.
    top1: share of tokens whose most likely successor is unchanged.
    """

    bits_per_byte: float
    reference_bits_per_byte: float
    kl: float
    kl_interval: Interval
    top1: float
    n_tokens: int


def judge(
    reference: str | PathLike[str], compressed: str | PathLike[str], text: str, *, window: int = 512, windows: int = 16
) -> Verdict:
    """One model on one text, in short; `evaluate` tells more."""
    settings = Settings(window=window, windows=windows, noise=False)
    found = evaluate(reference, [compressed], {"the text": text}, settings=settings)
    score, kl = found.models[0].text, found.models[0].text.kl
    ends = [kl.value if end is None else end for end in (kl.low, kl.high)]
    was = found.reference.text.bits_per_byte.value
    return Verdict(
        score.bits_per_byte.value, was, kl.value, Interval(kl.value, *ends), score.top1.value, score.n_tokens
    )


def _texts(texts: Mapping[str, str] | Sequence[str | PathLike[str]]) -> dict[str, str]:
    if isinstance(texts, Mapping):
        named = dict(texts)
    else:
        paths = [Path(p) for p in texts]
        names = [p.name for p in paths]
        named = {p.name if names.count(p.name) == 1 else str(p): read_text(p) for p in paths}
    if not named:
        raise BadInput("no text; a model is judged on one or more")
    return named


def _windows(reader: Reader, name: str, text: str, settings: Settings, n_texts: int) -> list[Window]:
    return spread(reader.windows(text, settings.window, name), max(1, settings.windows // n_texts))


def _lanes(
    reference: Model, models: Sequence[Model], tokenizer: Any, reader: Reader, settings: Settings
) -> list[Contestant]:
    """The reference, its twin in bfloat16, and the models, of one vocabulary and long enough for a window."""
    for model in models:
        check_words(model, tokenizer)
    first = enter(reference, settings.device)
    entered = distinct([first, *(enter(m, settings.device) for m in models)], [reference, *models])
    size = vocabulary(first, reader.prefix)
    for lane in entered[1:]:
        if (other := vocabulary(lane, reader.prefix)) != size:
            raise BadInput(
                f"{lane.name}: a vocabulary of {other:,}, the reference's has {size:,}; compare models of one"
            )
    longest = getattr(getattr(first.module, "config", None), "max_position_embeddings", None)
    if longest and settings.window > longest:
        raise BadConfig(f"a window of {settings.window} tokens; {first.name} takes {longest} at most")
    if not settings.noise:
        return entered
    twin = replace(first, name="reference in bfloat16", module=in_bfloat16(first.module), n_bytes=None)
    return [entered[0], twin, *entered[1:]]


@dataclass
class _Ticker:
    """Tokens that are done, told to whoever draws the bar."""

    progress: Progress | None
    total: int
    done: int = 0
    what: str = ""

    def add(self, n_tokens: int) -> None:
        self.done += n_tokens
        if self.progress:
            self.progress(self.done, self.total, self.what)


@dataclass(frozen=True)
class _Trace:
    """One model on every window: nats summed, and KL and agreement token by token."""

    nats: list[float] = field(default_factory=list)
    kl: list[np.ndarray] = field(default_factory=list)
    same: list[np.ndarray] = field(default_factory=list)


def _walk(lanes: Sequence[Contestant], windows: Mapping[str, Sequence[Window]], ticker: _Ticker) -> list[_Trace]:
    """All models over each window before the next, so that the reference's logits live for one window."""
    import torch
    from torch.nn.functional import cross_entropy

    traces = [_Trace() for _ in lanes]
    with torch.inference_mode():
        for name, cut in windows.items():
            for number, window in enumerate(cut):
                ids, first = torch.from_numpy(window.ids), None
                for lane, trace in zip(lanes, traces, strict=True):
                    ticker.what = f"{lane.name}: {name}"
                    logits = lane.module(input_ids=ids[None].to(lane.device)).logits[0, :-1].float()
                    nats = cross_entropy(logits, ids[1:].to(lane.device), reduction="none").cpu().double().sum()
                    logits = logits.cpu()
                    first = logits if first is None else first
                    kl = np.zeros(len(logits)) if lane is lanes[0] else kl_divergence(first, logits)
                    if not (np.isfinite(kl).all() and torch.isfinite(nats)):
                        raise BadInput(f"{lane.name}: logits that are not finite in window {number} of {name}")
                    trace.nats.append(float(nats))
                    trace.kl.append(kl)
                    trace.same.append(np.ones(len(kl), bool) if lane is lanes[0] else same_top1(first, logits))
                    ticker.add(len(window.ids))
    return traces


def _score_texts(
    trace: _Trace, reference: _Trace, windows: Mapping[str, Sequence[Window]]
) -> tuple[TextScore, dict[str, TextScore]]:
    """Over all windows, and text by text."""
    everything = [w for cut in windows.values() for w in cut]
    at, by_text = 0, {}
    for name, cut in windows.items():
        by_text[name] = _score_text(trace, reference, everything, slice(at, at + len(cut)))
        at += len(cut)
    return _score_text(trace, reference, everything, slice(None)), by_text


def _score_text(trace: _Trace, reference: _Trace, windows: Sequence[Window], part: slice) -> TextScore:
    added = np.subtract(trace.nats[part], reference.nats[part])
    n_bytes = [w.n_bytes for w in windows[part]]
    return text_score(trace.nats[part], added, trace.kl[part], trace.same[part], n_bytes)


def text_score(nats: ArrayLike, added: ArrayLike, kl: Sequence[np.ndarray], same: Sequence[np.ndarray],
               n_bytes: Sequence[int]) -> TextScore:  # fmt: skip
    """The score of windows, each given by its sums and by its tokens.

    Shapes: nats, added (to the reference's nats), n_bytes (n_windows,); kl, same: n_windows arrays of (n_tokens,).
    """
    kl_of_tokens = np.concatenate(kl)
    bits = np.log2(np.e)
    drawn = Resampled.of(
        tokens=[len(k) for k in kl],
        bytes=n_bytes,
        nats=nats,
        added=added,
        kl=[k.sum() for k in kl],
        same=[s.sum() for s in same],
    )
    nats_per_token, nats_per_byte = drawn.estimate(share("nats", "tokens")), drawn.estimate(share("nats", "bytes"))
    median, ninety, last = map(float, np.quantile(kl_of_tokens, [0.5, 0.9, 0.99]))
    return TextScore(
        n_windows=len(kl),
        n_tokens=len(kl_of_tokens),
        n_bytes=int(drawn.total["bytes"]),
        nats_per_token=nats_per_token,
        nats_per_byte=nats_per_byte,
        bits_per_byte=nats_per_byte.map(lambda x: float(x * bits)),
        perplexity=nats_per_token.map(lambda x: float(np.exp(x))),
        nats_added=drawn.estimate(share("added", "tokens")),
        bits_added=drawn.estimate(share("added", "bytes")).map(lambda x: float(x * bits)),
        kl=drawn.estimate(share("kl", "tokens")),
        kl_median=median,
        kl_90=ninety,
        kl_99=last,
        top1=drawn.estimate(share("same", "tokens")),
    )
