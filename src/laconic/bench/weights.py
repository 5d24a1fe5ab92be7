"""Whole models beside the best peers: loss at equal true bits, time, memory, kernels."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import CodecError
from ..sources.weights.calibrate import BATCH_TOKENS, WINDOW, WINDOWS
from ..sources.weights.compress import FISHER_TOKENS
from . import gemv, weights_vision
from .peers import PEERS, environments
from .peers import run as run_peer
from .peers.front import Point, kl_at
from .rows import Measurement, Row
from .weights_scaling import LARGER, Llama, extrapolated, timed_parts
from .weights_text import calibration_text, data_folder, model_folder

RATES = (2.0, 2.5, 3.0, 4.0)
TARGETS = {2.0: 0.5, 2.5: 0.5, 3.0: 0.5, 4.0: 0.7}  # of the best peer's KL
# The peers' settings around each rate: those that lie on the front of all that were tried (`peers/settings.py`), and the
# best of each peer that is nowhere on it.
BESIDE = {
    "llama.cpp": ("IQ1_S emb q3_k", "IQ1_M emb q3_k", "IQ2_XXS emb q4_k", "IQ2_XS emb iq3_s", "IQ2_M emb iq4_xs",
                  "IQ3_XXS emb iq3_s", "IQ2_M", "IQ3_S", "IQ3_M", "Q3_K_M"),
    "llm-compressor": ("gptq 3 bits g32 emb int4g32",),
    "hqq": ("4 bits g16 emb int4g64",),
}  # fmt: skip


def beside_peers() -> Iterator[Row]:
    """KL, top-1 and flipped items of `auto` at each rate, and of the peers around it; text that nobody calibrated on."""
    from ..sources.weights.judge import Settings, evaluate

    source, data = model_folder(), data_folder()
    texts = {p.stem: p.read_text(encoding="utf-8") for p in sorted((data / "english-eval").glob("*.txt"))}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        text = work / "calibration.txt"
        text.write_text(calibration_text(), encoding="utf-8")
        ours = {bits: _compressed(source, work / f"auto-{bits}", "auto", bits, text) for bits in RATES}
        peers = []
        for name, labels in BESIDE.items():
            for label in labels:
                try:
                    peers.append(run_peer(PEERS[name], label, source, text, environments() / "out"))
                except CodecError as e:
                    print(f"{name} {label}: {e}", file=sys.stderr)
        models = [said["out"] for said in ours.values()] + [p.folder for p in peers]
        settings = Settings(windows=48, pairs=20)
        found = evaluate(source, models, texts, pairs=data / "blimp" / "BLiMP.zip", settings=settings)
        noise = found.noise
        if noise is not None:
            yield Row("noise floor: the original in bfloat16, KL", noise.text.kl.value, "nats")
            yield Row("noise floor: top-1 changed", 1 - noise.text.top1.value, "share")
            if noise.pairs is not None:
                yield Row("noise floor: BLiMP items flipped", noise.pairs.all.flips.value, "share")
        measured = dict(zip(models, found.models, strict=True))
        points = []
        for p in peers:
            score = measured[p.folder]
            label = f"{p.name} {p.setting}, {p.bits:.3f} bits"
            points.append(Point(p.bits, score.text.kl.value, label))
            yield Row(f"{label}: KL", score.text.kl.value, "nats")
            yield Row(f"{label}: top-1 kept", score.text.top1.value, "share")
            yield Row(f"{label}: BLiMP flips", score.pairs.all.flips.value, "share")
        for bits, said in ours.items():
            score = measured[said["out"]]
            best = kl_at(points, said["bits"])
            near = min(peers, key=lambda p: abs(p.bits - bits), default=None)
            beside = measured[near.folder] if near else None
            label = f"auto, {said['bits']:.3f} bits"
            kl = score.text.kl
            yield Row(f"{label}: KL [{kl.low:.4f}, {kl.high:.4f}]", kl.value, "nats", "best peer, interpolated", best)
            if best:
                yield Row(f"{label}: KL over the best peer's", kl.value / best, "×", target=("<=", TARGETS[bits]))
            name = f"{near.name} {near.setting} at {near.bits:.2f}" if near else ""
            top, flips = score.text.top1, score.pairs.all.flips
            yield Row(f"{label}: top-1 kept [{top.low:.4f}, {top.high:.4f}]", top.value, "share", name,
                      beside.text.top1.value if beside else None,
                      (">=", beside.text.top1.value) if beside else None)  # fmt: skip
            yield Row(f"{label}: BLiMP flips [{flips.low:.4f}, {flips.high:.4f}]", flips.value, "share", name,
                      beside.pairs.all.flips.value if beside else None,
                      ("<=", beside.pairs.all.flips.value) if beside else None)  # fmt: skip
            yield Row(f"{label}: time", said["seconds"], "s", target=("<=", 600))
            yield Row(f"{label}: memory beyond a block, activations and 500 MB", said["beyond_bytes"] / 1e6, "MB",
                      target=("<=", 0.0))  # fmt: skip


def times() -> Iterator[Row]:
    """Seconds of gptq and auto on the whole model, what a parameter costs at two sizes, and what that makes of larger models."""
    source = model_folder()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        text = work / "calibration.txt"
        text.write_text(calibration_text(), encoding="utf-8")
        said = _compressed(source, work / "gptq", "gptq", None, text)
        yield Row(f"gptq, {said['bits']:.2f} bits: time", said["seconds"], "s", target=("<=", 60))
        small = data_folder() / "tinystories-llama-656k"
        for recipe in ("gptq", "auto"):
            runs = []
            for model, n in ((small, 0.656e6), (source, 7.34e6)):
                if model.is_dir():
                    said = _compressed(
                        model, work / f"{recipe}-{n:.0f}", recipe, 3.0 if recipe == "auto" else None, text
                    )
                    runs.append((Llama.of(json.loads((model / "config.json").read_text())), said))
                    if recipe == "auto" and model == source:
                        yield Row(f"auto, {said['bits']:.2f} bits: time", said["seconds"], "s", target=("<=", 600))
                    yield Row(f"{recipe}, {n / 1e6:.2f} M parameters: time a million", said["seconds"] / n * 1e6, "s")
                    yield Row(f"{recipe}, {n / 1e6:.2f} M parameters: memory beyond a block, activations and 500 MB",
                              said["beyond_bytes"] / 1e6, "MB", target=("<=", 0.0))  # fmt: skip
            if len(runs) == 2:
                yield from _larger(recipe, runs)


def _larger(recipe: str, runs: Sequence[tuple[Llama, dict[str, Any]]]) -> Iterator[Row]:
    """What the times of two models say of larger ones, on this machine with the same calibration text."""
    parts, (_, said) = timed_parts(), runs[-1]
    factors = said["factors"] / len(said["rows"])
    n_tokens = WINDOWS * WINDOW + FISHER_TOKENS
    for name, larger in LARGER.items():
        models = (*(m for m, _ in runs), larger)
        dense = {m: parts.of(m, n_tokens, factors) for m in models}
        seconds = extrapolated([(m, s["seconds"]) for m, s in runs], larger, dense)
        size = f"{larger.n_parameters / 1e9:.2f} G parameters"
        yield Row(f"{recipe}, {name}, {size}: time, extrapolated", seconds / 3600, "h")
        yield Row(f"{recipe}, {name}: of that moments, factors, feedback, extrapolated", dense[larger] / 3600, "h")


_JOB = """
import json, sys, torch
from pathlib import Path
torch.set_num_threads(2)
factors = []
def counted(f):
    def factor(*args, **kwargs):
        factors.append(len(args[0]))
        return f(*args, **kwargs)
    return factor
torch.linalg.cholesky, torch.linalg.cholesky_ex = map(counted, (torch.linalg.cholesky, torch.linalg.cholesky_ex))
from laconic.sources.weights.compress import compress
from laconic.sources.weights.forecast import FLOOR_BYTES
source, out, recipe, bits, text = sys.argv[1:]
r = compress(source, out=out, recipe=recipe, bits=json.loads(bits), calibration=[Path(text)])
from laconic.bench.kv_process import status
peak = status("VmHWM")  # its own: what getrusage says begins with its parent's
rows = [x.shape for x in r.rows]
print(json.dumps({"out": r.out, "bits": r.bits, "peak": peak, "rows": rows, "factors": len(factors)}))
"""


def _compressed(source: Path, out: Path, recipe: str, bits: float | None, text: Path) -> dict[str, Any]:
    """What a fresh process said of a whole job, with what it held beyond the allowance."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _JOB, str(source), str(out), recipe, json.dumps(bits), str(text)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise CodecError(f"{recipe} at {bits} bits: {done.stderr.strip().splitlines()[-1]}")
    said = json.loads(done.stdout.splitlines()[-1])
    said["seconds"] = time.perf_counter() - start
    config = json.loads((source / "config.json").read_text())
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    inside = [a * b for a, b in said["rows"] if max(a, b) != config["vocab_size"]]
    # One batch as it is run: hidden states, the products of a block and logits, all in float32. Fused attention takes no more.
    widths = 6 * hidden + 4 * config["intermediate_size"]
    activations = 4 * BATCH_TOKENS * (widths + config["vocab_size"])
    allowed = 4 * sum(inside) // layers + activations + 500e6
    said["beyond_bytes"] = said["peak"] - allowed
    return said


SUITE = (
    Measurement("auto beside the peers", beside_peers),
    Measurement("times", times),
    *gemv.SUITE,
    *weights_vision.SUITE,
)
