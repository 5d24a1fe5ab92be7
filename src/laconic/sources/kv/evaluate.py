"""Caches judged where they hurt: token by token behind a prefill, against the uncompressed cache.

A single forward pass over a text never reads what a cache stored, so that it finds no loss; here every judged token was
predicted from the stored history. Beside KL, flips and bits per byte stand the bits that the cache really took, mean over
the decode steps: a window that is empty at the end was not empty all the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ...core.errors import BadConfig, BadInput
from ...measure import kl_divergence, same_top1
from ..weights.contestants import in_bfloat16
from ..weights.estimates import Estimate, Resampled, share
from ..weights.judge import TextScore, text_score
from ..weights.reading import Reader, Window, spread
from .decode import MakeCache, decode, uncompressed

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Settings:
    """How much is judged. window: tokens with the prefix, the first `prefill` of them in one pass; windows: in all.

    batch: windows that are decoded together; buckets: parts of the decode range that KL is also told for; noise: whether
    the model is also judged in bfloat16, with an uncompressed cache.
    """

    window: int = 1024
    prefill: int = 768
    windows: int = 25
    batch: int = 8
    buckets: int = 4
    noise: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.prefill <= self.window - 2:
            raise BadConfig(f"prefill {self.prefill} of a window of {self.window}; two or more tokens must follow it")
        if min(self.windows, self.batch) < 1 or not 1 <= self.buckets <= self.n_steps:
            raise BadConfig(
                f"windows {self.windows}, batch {self.batch}, buckets {self.buckets}: 1 or more, {self.n_steps} buckets at most"
            )

    @property
    def n_steps(self) -> int:
        """Tokens that are fed one by one, each with a successor."""
        return self.window - 1 - self.prefill


@dataclass(frozen=True)
class Bucket:
    """KL of the tokens fed at positions first … last, nats a token."""

    first: int
    last: int
    kl: Estimate


@dataclass(frozen=True)
class CacheScore:
    """One cache. bits: true bits per K or V value, mean over decode steps; bits_at_end, n_bytes: behind the last step.

    n_bytes: of all windows together; positions: KL along the window; name of the uncompressed cache is "none".
    """

    name: str
    bits: float
    bits_at_end: float
    n_bytes: int
    text: TextScore
    positions: tuple[Bucket, ...]


@dataclass(frozen=True)
class CacheEvaluation:
    """What `evaluate` found. noise: the model in bfloat16 with an uncompressed cache, or None."""

    reference: CacheScore
    noise: CacheScore | None
    caches: tuple[CacheScore, ...]
    texts: tuple[str, ...]
    settings: Settings

    @property
    def rows(self) -> tuple[CacheScore, ...]:
        """All of them, the reference first."""
        return (self.reference, *([self.noise] if self.noise else []), *self.caches)

    def as_json(self) -> dict[str, Any]:
        """Every number, and the settings."""
        return asdict(self)


def evaluate(
    model: Any,
    tokenizer: Any,
    caches: Mapping[str, MakeCache],
    texts: Mapping[str, str],
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> CacheEvaluation:
    """Judge caches at decode time, teacher-forced, against transformers' DynamicCache.

    Every batch of windows is decoded once uncompressed and its logits kept; then through a fresh cache of each kind.

    model: a causal language model of transformers, in float32 for differences that are not noise; caches: name → a
        function that makes an empty one; texts: name → text, each as long as a window or longer.
    Raises BadInput: a text too short, logits that are not finite, a cache that changed what the model says and yet is no
        smaller than the uncompressed one.
    """
    settings = settings or Settings()
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest and settings.window > longest:
        raise BadConfig(f"a window of {settings.window} tokens; the model takes {longest} at most")
    windows = _windows(Reader.of(tokenizer), texts, settings)
    lanes: dict[str, tuple[Any, MakeCache]] = {"none": (model, uncompressed(model.config))}
    if settings.noise:
        twin = in_bfloat16(model)
        lanes["bfloat16"] = (twin, uncompressed(twin.config))
    if taken := lanes.keys() & caches.keys():
        raise BadConfig(f"a cache named {min(taken)!r}; the uncompressed one is judged in any case, under that name")
    lanes |= {name: (model, make) for name, make in caches.items()}
    traces = _walk(lanes, windows, settings, progress)
    scores = [_score(name, trace, traces["none"], windows, settings) for name, trace in traces.items()]
    for score in scores[1 + settings.noise :]:
        if score.text.kl.value > 0 and score.bits >= scores[0].bits:
            raise BadInput(
                f"{score.name} takes {score.bits:.2f} bits per value over these steps, the uncompressed cache "
                f"{scores[0].bits:.2f}: nothing was compressed; judge it on longer windows"
            )
    noise = scores[1] if settings.noise else None
    return CacheEvaluation(scores[0], noise, tuple(scores[1 + settings.noise :]), tuple(texts), settings)


def _windows(reader: Reader, texts: Mapping[str, str], settings: Settings) -> list[Window]:
    """Of equal length, evenly over all texts; bytes counted are those of the tokens that a decode step predicts."""
    if not texts:
        raise BadInput("no text; a cache is judged on one or more")
    found = []
    for name, text in texts.items():
        cut = reader.windows(text, settings.window, name, skip=settings.prefill)
        if len(cut[0].ids) < settings.window:
            raise BadInput(f"{name} has {len(cut[0].ids) - 1:,} tokens; a window takes {settings.window - 1:,}")
        found += spread(cut, max(1, settings.windows // len(texts)))
    return found


@dataclass
class _Trace:
    """One cache on every window: nats summed; KL and agreement token by token; bytes and values batch by batch."""

    nats: list[float] = field(default_factory=list)
    kl: list[np.ndarray] = field(default_factory=list)
    same: list[np.ndarray] = field(default_factory=list)
    n_bytes: list[np.ndarray] = field(default_factory=list)
    n_values: list[np.ndarray] = field(default_factory=list)


def _walk(
    lanes: Mapping[str, tuple[Any, MakeCache]], windows: Sequence[Window], settings: Settings, progress: Progress | None
) -> dict[str, _Trace]:
    """Batch by batch, the reference first, so that its logits live for one batch."""
    import torch

    traces = {name: _Trace() for name in lanes}
    done, total = 0, len(windows) * len(lanes)
    for start in range(0, len(windows), settings.batch):
        batch = windows[start : start + settings.batch]
        ids = torch.from_numpy(np.stack([w.ids for w in batch]))
        first = held = None
        for name, (model, make) in lanes.items():
            if progress:
                progress(done, total, name)
            steps = decode(model, make(), ids[:, :-1], settings.prefill, name, count_values=first is None)
            logits = steps.logits.cpu()
            if first is None:
                first, held = logits, steps.n_values
            _note(traces[name], first, logits, ids[:, settings.prefill + 1 :], steps.n_bytes, held)
            done += len(batch)
    return traces


def _note(trace: _Trace, reference: Any, logits: Any, targets: Any, n_bytes: np.ndarray, n_values: Any) -> None:
    """Shapes: reference, logits (n_windows, n_steps, vocabulary); targets (n_windows, n_steps)."""
    from torch.nn.functional import cross_entropy

    nats = cross_entropy(logits.transpose(1, 2), targets, reduction="none").double().sum(1)
    trace.nats += nats.tolist()
    if logits is reference:
        trace.kl += list(np.zeros(targets.shape))
        trace.same += list(np.ones(targets.shape, bool))
    else:
        trace.kl += list(kl_divergence(reference, logits))
        trace.same += list(same_top1(reference, logits))
    trace.n_bytes.append(n_bytes)
    trace.n_values.append(n_values)


def _score(name: str, trace: _Trace, reference: _Trace, windows: Sequence[Window], settings: Settings) -> CacheScore:
    n_bytes, n_values = sum(trace.n_bytes), sum(trace.n_values)  # (n_steps,), of all batches
    added = np.subtract(trace.nats, reference.nats)
    return CacheScore(
        name=name,
        bits=float(8 * np.mean(n_bytes / n_values)),
        bits_at_end=float(8 * n_bytes[-1] / n_values[-1]),
        n_bytes=int(n_bytes[-1]),
        text=text_score(trace.nats, added, trace.kl, trace.same, [w.n_bytes for w in windows]),
        positions=tuple(_buckets(np.stack(trace.kl), settings)),
    )


def _buckets(kl: np.ndarray, settings: Settings) -> list[Bucket]:
    """Shapes: kl (n_windows, n_steps)."""
    ends = np.linspace(0, settings.n_steps, settings.buckets + 1).round().astype(int)
    found = []
    for a, b in zip(ends[:-1], ends[1:], strict=True):
        drawn = Resampled.of(kl=kl[:, a:b].sum(1), tokens=np.full(len(kl), b - a))
        found.append(
            Bucket(settings.prefill + int(a), settings.prefill + int(b) - 1, drawn.estimate(share("kl", "tokens")))
        )
    return found
