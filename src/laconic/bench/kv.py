"""Caches beside the best peers: loss while a model decodes, long-context tasks, memory of the process."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.errors import BadConfig, CodecError
from ..sources.kv.evaluate import CacheScore, Settings, evaluate
from ..sources.kv.recall import Recall, recall
from ..sources.kv.recall_tasks import TASKS, make_tasks
from ..sources.weights.reading import Reader
from . import kv_attention, kv_joining, kv_peers
from .kv_caches import maker, parse
from .kv_process import Job, in_fresh_process
from .peers.front import Point, kl_at
from .rows import Measurement, Row
from .tinystories import open_model
from .weights_text import calibration_text, data_folder, model_folder

# Rate → the peers' rate that it is held against, and the share of their KL.
TARGETS = {2.0: (3.0, 1.0), 3.0: (3.0, 0.5), 4.0: (4.0, 0.5)}
BLOCKS = ("q4_0", "q4_0+rot", "iq4_nl", "iq4_nl+rot", "q4_1", "q5_0", "q8_0", "fp8")
QUANTIZED = ("quanto:2g64", "quanto:2", "quanto:4g64", "quanto:4", "hqq:2", "hqq:4")
STORIES = Settings(window=512, prefill=384, windows=24, batch=24)


def beside_peers() -> Iterator[Row]:
    """KL and top-1 of `auto` at each rate, and of the peers: english-llama-7m, text that nobody calibrated on."""
    folder = model_folder()
    settings = Settings(windows=25, batch=25)
    model, words = open_model(folder)
    peers = _peers(folder, _english(), QUANTIZED, settings)
    yield from _beside("", model, words, _english(), calibration_text(), peers, BLOCKS, settings)


def on_stories() -> Iterator[Row]:
    """The same on the TinyStories Llamas, whose heads (8 and 16 values) llama.cpp's blocks of 32 do not divide."""
    data = data_folder()
    text = (data / "tinystories-text" / "tinystories_train_2MiB.txt").read_text(encoding="utf-8", errors="ignore")
    texts, learned = {"stories": text[-120_000:]}, text[:600_000]
    for label, folder in (("656K, ", "tinystories-llama-656k"), ("260K, ", "tinystories-llama-260k")):
        peers = _peers(data / folder, texts, QUANTIZED, STORIES)
        model, words = open_model(data / folder)
        yield from _beside(label, model, words, texts, learned, peers, ("fp8",), STORIES)


def long_context() -> Iterator[Row]:
    """Tasks that english-llama-7m can do uncompressed, at 3 bits: inside the uncompressed cache's bootstrap interval?"""
    folder = model_folder()
    model, words = open_model(folder)
    reader, length = Reader.of(words), 1024
    tasks = make_tasks(reader, _english(), tuple(TASKS), 40, length)
    with tempfile.TemporaryDirectory() as work:
        text = _written(Path(work), calibration_text())
        (spec,) = parse("auto:3")
        ours = maker(spec, model, calibration=[text], tokenizer=words, context=length)
    blocks = {s.name: maker(s, model) for s in parse("q4_0,iq4_nl+rot")}
    found = recall(model, {"auto at 3 bits": ours, **blocks}, tasks, batch=20)
    beside: Sequence[Recall] = found
    try:
        theirs = kv_peers.recalled(folder, _english(), ("quanto:2",), list(TASKS), 40, length, 20)
        beside = [replace(a, caches=a.caches + b.caches) for a, b in zip(found, theirs, strict=True)]
    except CodecError as e:  # no environment, or lengths that its groups do not divide
        print(e, file=sys.stderr)
    for task in beside:
        yield from _recall_rows(task)


def memory() -> Iterator[Row]:
    """What a cache of 16,384 tokens of a 1 B Llama's shape adds to a process."""
    plain = in_fresh_process(Job("none", 16384))
    ours = in_fresh_process(Job("auto:3", 16384, all_in=True))
    yield Row("uncompressed cache, 1 B shape, 16 k tokens: the process holds", plain.held / 1e6, "MB")
    yield Row("auto at 3 bits: the process holds", ours.held / 1e6, "MB", "the cache says", ours.said / 1e6)
    yield Row("auto at 3 bits: of the uncompressed", ours.held / plain.held, "×", target=("<=", 0.21))
    yield Row("auto at 3 bits: at most while it is filled", ours.peak / 1e6, "MB", "uncompressed", plain.peak / 1e6)


def _english() -> dict[str, str]:
    return {p.stem: p.read_text(encoding="utf-8") for p in sorted((data_folder() / "english-eval").glob("*.txt"))}


def _written(folder: Path, text: str) -> Path:
    path = folder / "calibration.txt"
    path.write_text(text, encoding="utf-8")
    return path


def _peers(folder: Path, texts: Mapping[str, str], names: Sequence[str], settings: Settings) -> list[CacheScore]:
    """None of them where their environment has not been built, and a word of it."""
    try:
        return kv_peers.score(folder, texts, names, replace(settings, noise=False))
    except BadConfig as e:
        print(e, file=sys.stderr)
        return []


def _beside(
    label: str, model: Any, words: Any, texts: Mapping[str, str], learned: str, peers: Sequence[CacheScore],
    blocks: Sequence[str], settings: Settings,
) -> Iterator[Row]:  # fmt: skip
    """Rows of ours at every rate, and of the peers. `learned`: the calibration text of ours."""
    middle = (settings.prefill + settings.window) // 2
    with tempfile.TemporaryDirectory() as work:
        text = _written(Path(work), learned)
        ours = {
            s.name: maker(s, model, calibration=[text], tokenizer=words, context=middle)
            for s in parse(",".join(f"auto:{bits:g}" for bits in TARGETS))
        }
    beside = {s.name: maker(s, model) for s in parse(",".join(blocks))}
    found = evaluate(model, words, {**ours, **beside}, texts, settings)
    if found.noise is not None:
        yield Row(f"{label}noise floor: the model in bfloat16, KL", found.noise.text.kl.value, "nats")
    theirs = [*found.caches[len(ours) :], *peers]
    points = []
    for s in sorted(theirs, key=lambda s: s.bits):
        name = f"{label}{s.name}, {s.bits:.3f} bits"
        points.append(Point(s.bits, s.text.kl.value, name))
        yield Row(f"{name}: KL", s.text.kl.value, "nats")
        yield Row(f"{name}: top-1 kept", s.text.top1.value, "share")
    for bits, s in zip(TARGETS, found.caches, strict=False):
        at, share = TARGETS[bits]
        at = s.bits if at == bits else at
        peer = kl_at(points, at)
        kl, top = s.text.kl, s.text.top1
        name = f"{label}auto, {s.bits:.3f} bits"
        yield Row(f"{name}: KL [{kl.low:.3g}, {kl.high:.3g}]", kl.value, "nats", f"best peer at {at:.3f} bits", peer)
        if peer is not None:
            target = ("<=", share) if not label else None  # the goals are of english-llama-7m
            yield Row(f"{name}: KL over the best peer's at {at:.3f} bits", kl.value / peer, "×", target=target)
        yield Row(f"{name}: top-1 kept [{top.low:.4f}, {top.high:.4f}]", top.value, "share")
        yield Row(f"{name}: bits a byte added", s.text.bits_added.value, "bits")


def _recall_rows(task: Recall) -> Iterator[Row]:
    first = task.reference
    yield Row(f"{task.task}: what the context is worth, uncompressed", task.gain.value, "nats")
    if not task.able:
        return  # a task that the model cannot do says nothing
    yield Row(f"{task.task}: uncompressed [{first.nats.low:.3f}, {first.nats.high:.3f}]", first.nats.value, "nats")
    ours, *peers = task.caches
    for s in peers:
        yield Row(f"{task.task}: {s.name}, {s.bits:.3f} bits, change", s.change.value, "nats")
    change = ours.change
    name = f"{task.task}: {ours.name}, {ours.bits:.3f} bits"
    yield Row(f"{name}, change [{change.low:+.4f}, {change.high:+.4f}]", change.value, "nats")
    yield Row(f"{name}, nats a token", ours.nats.value, "nats", "uncompressed", first.nats.value,
              ("<=", first.nats.high or first.nats.value))  # fmt: skip
    yield Row(f"{name}, exact tokens", ours.exact.value, "share", "uncompressed", first.exact.value,
              (">=", first.exact.low or first.exact.value))  # fmt: skip


SUITE = (
    Measurement("auto beside the peers", beside_peers),
    Measurement("long context", long_context),
    Measurement("memory", memory),
    Measurement("tinystories", on_stories),
    *kv_joining.SUITE,
    *kv_attention.SUITE,
)
