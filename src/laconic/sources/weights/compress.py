"""A whole model to a bit budget: plan, walk, code, put together."""

from __future__ import annotations

import ctypes
import hashlib
import inspect
import json
import math
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...core import registry
from ...core.errors import BadConfig, BadInput, CodecError
from ...core.packet import Codec, decode
from ...core.stage import Stage, Stats
from ...quantize.rounding import HessianWarning
from . import calibrate, distributed, policies, stack, store
from .capture import Moments
from .forecast import Forecast, forecast
from .network import Matrix, Network, open_source, skeleton
from .recipe import WeightRecipe
from .walk import Fisher, Spool, Walk
from .whole import Whole

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[int, int, str], None]
PACKET_BYTES = 130  # header, framing and checksums of a packet
TOLERANCE = 0.01  # bits a parameter
TOLERATED_BYTES = 2048  # which is more than that for models below 1.6 million parameters
AGAIN = 3  # times that the last matrices are coded anew where the budget was missed
FALLBACK = "ectcq"  # the codec of a matrix whose shape the recipe's refuses
FISHER_TOKENS = 1 << 14  # that the pass back sees
# Rows of an embedding or a head that calibration hardly met will be met later, and a row that is rounded away costs more than the
# quadratic model knows: with weights as counted a 2.5-bit embedding cost .098 nats, with a floor of .1 to 1 of the mean .025.
RARE, ROW_FLOOR = 5.0, 0.3


@dataclass(frozen=True)
class Row:
    """What became of one matrix. error: Σ d H dᵀ / Σ w H wᵀ; plain squared error where no input was seen."""

    name: str
    shape: tuple[int, int]
    rate: float
    bits: float
    error: float
    note: str = ""
    levels: tuple[float, ...] = ()  # of nested packets: the loss with no level, with one, …
    level_bytes: int = 0


@dataclass(frozen=True)
class Report:
    """What `compress` did. bits: all bytes of the weight files but kept matrices, over the compressed parameters."""

    out: str
    recipe: str
    bits: float
    n_parameters: int
    weight_bytes: int
    original_bytes: int
    rows: tuple[Row, ...]
    seconds: float
    remarks: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """Remarks on the whole, and one line for every matrix that needed a fall-back."""
        return [*self.remarks, *(f"{r.name}: {r.note}" for r in self.rows if r.note)]


@dataclass(frozen=True)
class Job:
    """What decides the result, apart from the model and the calibration inputs."""

    recipe: str
    settings: dict[str, Any]
    bits: float | None
    keep: tuple[str, ...]


def recipe_of(name: str, **settings: Any) -> WeightRecipe:
    """A registered recipe as the room runs it: a codec at its several `bits`, where the recipe is nothing but a codec."""
    line = registry.recipe(name)
    if line.domain != "weights":
        raise BadConfig(f"recipe {name!r} is for {line.domain}; weights have {', '.join(registry.recipes('weights'))}")
    build = registry.load(line.target)
    known = inspect.signature(build).parameters
    for s in settings:
        if s not in known:
            raise BadConfig(f"recipe {name!r} has no setting {s!r}; it has {', '.join(known)}")
    built = build(**settings)
    if not isinstance(built, Stage):
        return built
    if "bits" not in known:
        return WeightRecipe(lambda rate: built, (1.0,), nominal=1.0)
    nominal = float(settings.get("bits", known["bits"].default))
    rest = {k: v for k, v in settings.items() if k != "bits"}
    if not isinstance(known["bits"].default, int):
        if built.keeps_rate:
            return WeightRecipe(lambda rate: build(bits=rate, **rest), nominal=nominal)
        quarters = tuple(q / 4 for q in range(2, 33) if _builds(build, q / 4, rest))
        return WeightRecipe(lambda rate: build(bits=rate, **rest), quarters, nominal=nominal)
    rates = [b for b in range(1, 9) if _builds(build, b, rest)]
    return WeightRecipe(lambda rate: build(bits=int(rate), **rest), tuple(map(float, rates)), nominal=nominal)


def _builds(build: Callable[..., Any], bits: float, rest: dict[str, Any]) -> bool:
    try:
        build(bits=bits, **rest)
    except CodecError:
        return False
    return True


def compress(
    model_or_path: Any,
    *,
    out: str | PathLike[str] | None = None,
    bits: float | None = None,
    recipe: str | WeightRecipe = "auto",
    calibration: Any = None,
    keep: Sequence[str] = (),
    resume: bool = False,
    force: bool = False,
    threads: int = 2,
    progress: Progress | None = None,
    **settings: Any,
) -> Any:
    """Compress a model to `bits` a parameter; see the module for what is counted.

    model_or_path: a Hugging Face folder, or any torch.nn.Module. out: the folder to write (needed for a folder).
    bits: mean over all compressed parameters with everything counted, met within .01; None: the recipe's own rate.
    calibration: a text, or a list of texts or of paths to text files (folders of language models); else inputs of the
        module: a tensor (n, …), a dict of keyword tensors, or a list of batches. None: coded without statistics.
    keep: matrices whose names match are left as they are (shell patterns or parts of names).
    resume: go on with a run that was stopped.
    Returns a `Report` for a folder; for a module (module with compressed weights in place, Report).
    Raises BadInput, BadConfig, FileExistsError; `out` is not there when it does.
    """
    start = time.perf_counter()
    if isinstance(model_or_path, torch.nn.Module):
        from .modules import compress_module

        plan, job = _job(recipe, settings, bits, keep)
        return compress_module(model_or_path, plan, job, calibration, out, progress, threads)
    if out is None:
        raise BadConfig("name the output folder (out=, -o)")
    target = Path(out)
    if target.exists() and not force:
        raise FileExistsError(f"{target} exists; -f overwrites it")
    run = _run(model_or_path, target, bits, recipe, calibration, keep, threads, progress, settings)
    run.open(resume)
    report = run.to_folder(target, force, start) if run.rank == 0 else run.follow()
    distributed.wait()
    return report


def prepare(
    path: Any, *, out: str | PathLike[str], bits: float | None = None, recipe: str | WeightRecipe = "auto",
    calibration: Any = None, keep: Sequence[str] = (), threads: int = 2, **settings: Any,
) -> Forecast:  # fmt: skip
    """What `compress` with the same arguments will need; everything about them is checked, nothing is written."""
    with tempfile.TemporaryDirectory() as work:
        beside = Path(out).absolute().parent
        if not beside.exists():
            raise BadInput(f"{beside}: no such folder")
        return forecast(_run(path, Path(work) / "out", bits, recipe, calibration, keep, threads, None, settings))


def _job(
    recipe: str | WeightRecipe, settings: dict[str, Any], bits: float | None, keep: Sequence[str]
) -> tuple[WeightRecipe, Job]:
    name = recipe if isinstance(recipe, str) else "custom"
    plan = recipe_of(recipe, **settings) if isinstance(recipe, str) else recipe
    if bits is None and not plan.rates:
        bits = plan.nominal
    if bits is not None and not (0 < bits <= 16 and math.isfinite(bits)):
        raise BadConfig(f"bits {bits}; above 0 and up to 16 is right")
    return plan, Job(name, settings, bits, tuple(keep))


def _run(
    path: Any, target: Path, bits: float | None, recipe: str | WeightRecipe, calibration: Any, keep: Sequence[str],
    threads: int, progress: Progress | None, settings: dict[str, Any],
) -> Run:  # fmt: skip
    """The job, checked as far as headers and calibration texts allow."""
    folder = Path(path)
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder")
    if not target.absolute().parent.exists():
        raise BadInput(f"{target.parent}: no such folder")
    plan, job = _job(recipe, settings, bits, keep)
    rank, world = distributed.start()
    work = target.with_name(target.name + ".partial" + (f".{rank}" if rank else ""))
    model = skeleton(folder, softmax=plan.statistics.tokens == "attention")
    net = Network(model, open_source(folder, model, work), tuple(keep))
    net.check()
    batches = text_batches(folder, net, calibration)
    if 0 < len(batches) < world:
        raise BadInput(f"{len(batches)} batches of calibration for {world} processes; start fewer, or give more text")
    batches = distributed.share(batches, rank, world)
    return Run(net, batches, plan, job, work, folder, threads, progress, calibration_key(calibration), rank)


def text_batches(folder: Path, net: Network, calibration: Any) -> list[dict[str, Any]]:
    """Batches of token windows from texts, or the inputs as they were given."""
    if calibration is None:
        return []
    if isinstance(calibration, (str, PathLike)):
        calibration = [calibration]
    if (
        isinstance(calibration, dict)
        or not len(calibration)
        or not all(isinstance(c, (str, PathLike)) for c in calibration)
    ):
        return calibrate.batches(calibration)
    texts = [calibrate.read_text(c) if isinstance(c, PathLike) or _is_path(c) else c for c in calibration]
    vocabulary = net.model.get_input_embeddings().weight.shape[0]
    ids = calibrate.tokenize(folder, texts, vocabulary)
    longest = min(calibrate.WINDOW, getattr(net.model.config, "max_position_embeddings", calibrate.WINDOW))
    return calibrate.batches(calibrate.windows(ids, calibrate.begin_token(folder), calibrate.WINDOWS, longest))


def _is_path(text: str) -> bool:
    return len(text) < 1024 and "\n" not in text and ("/" in text or Path(text).exists())


def calibration_key(calibration: Any) -> str:
    """Hash of the calibration inputs."""
    h = hashlib.sha256()

    def add(x: Any) -> None:
        if isinstance(x, torch.Tensor):
            h.update(str(tuple(x.shape)).encode() + x.detach().contiguous().numpy().tobytes())
        elif isinstance(x, dict):
            for k in sorted(x):
                h.update(k.encode())
                add(x[k])
        elif isinstance(x, (list, tuple)):
            for y in x:
                add(y)
        elif isinstance(x, PathLike) or (isinstance(x, str) and _is_path(x)):
            h.update(Path(x).read_bytes() if Path(x).is_file() else b"")
        else:
            h.update(str(x).encode())

    add(calibration)
    return h.hexdigest()


def release() -> None:
    """Give freed memory back to the system: glibc keeps it where the next phase, whose arrays differ, has no use for it."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


class Run:
    """One job from beginning to end; everything that must survive a kill is in its work folder."""

    def __init__(
        self, net: Network, batches: list[dict[str, Any]], recipe: WeightRecipe, job: Job, work: Path,
        origin: Path | None, threads: int, progress: Progress | None, inputs: str, rank: int = 0,
    ) -> None:  # fmt: skip
        self.net, self.batches, self.recipe, self.job, self.work = net, batches, recipe, job, work
        self.origin, self.threads, self.progress, self.inputs, self.rank = origin, threads, progress, inputs, rank
        self.walk: Walk | Whole | None = None
        if batches:
            self.walk = Walk(net, batches) if net.blocks else Whole(net, batches)
        stem = [m for m in net.outside() if m.role == "embedding"]
        rest = [m for m in net.outside() if m.role != "embedding"]
        blocks = [(b, net.below(b)) for b in net.blocks]
        self.units: list[tuple[str, list[Matrix]]] = [("embeddings", stem), *blocks, ("head", rest)]
        if not blocks:
            self.units = [("embeddings", stem), ("", rest), ("head", [])]
        self.codecs: dict[str, Codec] = {}
        self._lock = threading.Lock()
        self.fisher: Fisher | None = None
        self._step = 0.0
        if not net.matrices:
            raise BadInput("nothing to compress: no matrix of 1,024 values or more")

    def open(self, resume: bool) -> None:
        """The work folder: a new one, or with `resume` that of a run that was stopped."""
        said = [asdict(self.job), self.inputs, store.fingerprint(self.net.source, self.origin), store.FORMAT]
        key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
        self.journal = store.Journal.open(self.work, key, resume)
        self.codecs = store.read_codecs({"codecs": self.journal.codecs})

    def fisher_batches(self) -> int:
        """Batches of the pass back, over all processes."""
        return -(-FISHER_TOKENS // calibrate.n_tokens(self.batches[0]))

    # ---- the plan

    def budget(self) -> float:
        """Bits for the packets: the whole allowance less what is kept as it is and the files' own tables."""
        assert self.job.bits is not None
        n = sum(m.n_elements for m in self.net.matrices)
        return self.job.bits * n - 8 * self.overhead()

    def overhead(self) -> int:
        replaced = self.replaced()
        matrices = {self.net.aliases[m.name.partition("#")[0]] for m in self.net.every}
        small = [k for k in self.net.source if k not in replaced and k not in matrices]
        tensors = sum(self.net.source[k].nbytes for k in small)
        table = sum(len(k) + 75 for k in small) + sum(len(store.entry(m)) + 75 for m in self.net.matrices)
        return tensors + table + stack.order_bytes(self.journal.rows)

    def replaced(self) -> set[str]:
        """Names in the source of the parameters that packets stand for."""
        return {self.net.aliases[m.name.partition("#")[0]] for m in self.net.matrices}

    def sensitivity(self, m: Matrix, hessian: Tensor | None = None) -> policies.Sensitivity:
        """What is known of a matrix: from the pass back if there was one."""
        rows = torch.ones(m.shape[0])
        f = self.fisher
        if f is None:
            h = hessian if hessian is not None else torch.eye(m.shape[1])
            return policies.Sensitivity(h, rows)
        if m.role == "embedding":
            return self._embedding(m, f)
        if hessian is None:
            hessian = f.moments.hessian(m.name, self.coherence(m))
        if hessian is None:
            hessian = self._like(m, f.moments.hessian)
        found = f.rows.get(m.name)
        if found is None:  # an expert that no token reached, or a matrix of which only a part is used
            found = torch.full((m.shape[0],), float(np.mean([float(r.mean()) for r in f.rows.values()])) * 1e-2)
        outside = any(m.name == o.name for o in self.net.outside()) and bool(self.net.blocks)
        floor = (ROW_FLOOR if outside else 0.01) * float(found.mean())
        return policies.Sensitivity(
            hessian if hessian is not None else torch.eye(m.shape[1]), found.clamp(min=max(floor, 1e-20))
        )

    def coherence(self, m: Matrix) -> float:
        """What the Hessian of a convolution has to know of its gradients; published recipes take inputs as their papers do."""
        return self.fisher.coherence.get(m.name, 0.0) if self.fisher and self.recipe.statistics.fisher else 0.0

    def _embedding(self, m: Matrix, f: Fisher) -> policies.Sensitivity:
        """Rows that are looked up, each as often as it occurs; where the head shares them, its error as well."""
        n = f.frequencies.get(m.name)
        often = torch.ones(m.shape[0]) if n is None else n + RARE
        often = often / often.sum()
        same = f.looked_up.numel() == m.shape[1]
        h = torch.diag(f.looked_up) if same else torch.eye(m.shape[1])
        head, rows = f.moments.hessian(m.name), f.rows.get(m.name)
        if head is None or rows is None:
            return policies.Sensitivity(h, often.clamp(min=ROW_FLOOR * float(often.mean())))
        weight = often * h.trace() + rows * head.trace()
        mixed = often.sum() * h + rows.sum() * head
        mixed = mixed / mixed.trace()
        return policies.Sensitivity(mixed, weight.clamp(min=ROW_FLOOR * float(weight.mean())))

    def _like(self, m: Matrix, hessian: Callable[[str], Tensor | None]) -> Tensor | None:
        """For an expert without inputs: the mean over the others of its stack."""
        if m.expert is None:
            return None
        stack = m.name.partition("#")[0]
        others = [o.name for o in self.net.matrices if o.name.startswith(stack + "#") and o.name != m.name]
        found = [h for h in map(hessian, others) if h is not None]
        return torch.stack(found).mean(0) if found else None

    def plan(self) -> None:
        """Rates of all matrices into the journal."""
        if self.journal.plan:
            return
        net, recipe = self.net, self.recipe
        if self.job.bits is None:
            self.journal.plan = {m.name: recipe.nominal for m in net.matrices}
            self.journal.save()
            return
        budget = self.budget()
        if recipe.at_step is not None:
            self._plan_step(budget)
            self.journal.save()
            return
        if recipe.policy is not None:
            from .trial import Trial

            with Trial(self) as trial:
                rates = recipe.policy(trial, budget)
        elif stack.is_nested(recipe.codec):
            rates = stack.plan(self, budget)
        elif not recipe.rates:
            spectra = []
            for i, m in enumerate(net.matrices):
                self._tick(i, len(net.matrices), f"plan: {m.name}")
                spectra.append(policies.spectrum(self.weight(m), self.sensitivity(m)))
            rates = policies.water_level(spectra, [m.n_elements for m in net.matrices], budget)
        else:
            rates = self._from_table(budget)
        self.journal.plan = {m.name: r for m, r in zip(net.matrices, rates, strict=True)}
        self.journal.save()

    def _plan_step(self, budget: float) -> None:
        """One step for all matrices, and the rates that it is estimated to give, into the journal.

        The start is the water level of the coordinates; from there secants on log2(step), as rates fall by less than a bit
        an octave.
        """
        ms, at_step = self.net.matrices, self.recipe.at_step
        assert at_step is not None
        n = sum(m.n_elements for m in ms)

        def rates(log_step: float) -> list[float]:
            def one(m: Matrix) -> float:
                s = self.sensitivity(m)
                stats = Stats(hessian=s.hessian, importance=s.rows[:, None])
                return float(at_step(2.0**log_step).estimate(self.weight(m), stats)[0])

            out = []
            with ThreadPoolExecutor(self.threads) as pool:
                for i, r in enumerate(pool.map(one, ms)):
                    release()
                    out.append(r + 8 * PACKET_BYTES / ms[i].n_elements)
                    self._tick(i, len(ms), f"plan: {ms[i].name}")
            return out

        spectra = [policies.spectrum(self.weight(m), self.sensitivity(m)) for m in ms]
        want = [m.n_elements for m in ms]
        near = policies.water_level(spectra, want, budget)
        level = [np.log2(np.maximum(v, 1e-300)).mean() - 2 * b for v, b in zip(spectra, near, strict=True)]
        u, slope, last = 0.5 * float(np.average(level, weights=want)) + 1.5, -0.8, None
        for _ in range(8):
            found = rates(u)
            gap = (sum(r * k for r, k in zip(found, want, strict=True)) - budget) / n
            if abs(gap) < 0.25 * TOLERANCE:
                break
            if last is not None and last[0] != u:
                slope = min(max((gap - last[1]) / (u - last[0]), -1.5), -0.1)
            last = u, gap
            u -= min(max(gap / slope, -3.0), 3.0)
        if abs(gap) > 4 * self.tolerance():
            raise BadConfig(
                f"{self.job.bits} bits cannot be met: {self.job.recipe!r} comes to {self.job.bits + gap:.3f} at the nearest"
            )
        self.journal.plan = {m.name: r for m, r in zip(ms, found, strict=True)}
        self.journal.step, self.journal.slope = 2.0**u, slope

    def _step_now(self, packets: Mapping[str, bytes]) -> float:
        """The step for what is ahead: what was coded took too much or too little, which is spread over the rest.

        packets: of the unit at hand, as far as it is coded.
        """
        assert self.journal.step is not None
        ahead = self._ahead(packets)
        expected = sum(self.journal.plan[m.name] * m.n_elements for m in ahead)
        gap = (self._left(packets) - expected) / max(sum(m.n_elements for m in ahead), 1)
        return self.journal.step * 2.0 ** min(max(gap / self.journal.slope, -2.0), 2.0)

    def _ahead(self, packets: Mapping[str, bytes]) -> list[Matrix]:
        """Matrices that are not coded yet."""
        return [m for _, ms in self.units[self.journal.done :] for m in ms if m.name not in packets]

    def _left(self, packets: Mapping[str, bytes]) -> float:
        """Bits of the budget that are not spent yet; negative when it is overspent."""
        return self.budget() - 8 * (self.packet_bytes(self.journal.done) + sum(map(len, packets.values())))

    def _from_table(self, budget: float) -> list[float]:
        bits, nats = [], []
        for i, m in enumerate(self.net.matrices):
            self._tick(i, len(self.net.matrices), f"plan: {m.name}")
            b, d = policies.measured(self.weight(m), self.sensitivity(m), self.recipe, self.recipe.rates)
            bits.append(b)
            nats.append(d)
        table = np.array(bits)
        least, most = table.min(1).sum(), np.where(np.isfinite(table), table, 0).max(1).sum()
        n = sum(m.n_elements for m in self.net.matrices)
        free = 8 * self.overhead()
        for bound, word in ((least, "least"), (most, "most")):
            if budget < bound if word == "least" else budget > bound + self.tolerance() * n:
                raise BadConfig(f"{self.job.bits} bits; recipe {self.job.recipe!r} gives at {word} "
                                f"{(bound + free) / n:.3f} on this model, everything counted")  # fmt: skip
        return policies.choose(table, np.array(nats), self.recipe.rates, budget)

    # ---- the walk

    def weight(self, m: Matrix) -> Tensor:
        """The original matrix (n_out, n_in), float32."""
        w = m.take(self.net.source[self.net.aliases[m.name.partition("#")[0]]].to(torch.float32)).contiguous()
        if not bool(torch.isfinite(w).all()):
            raise BadInput(f"{m.name}: {int((~torch.isfinite(w)).sum())} of {w.numel()} values are NaN or Inf")
        return w

    def _tick(self, done: int, total: int, what: str) -> None:
        if self.progress:
            self.progress(done, total, what)

    def to_folder(self, out: Path, force: bool, start: float) -> Report:
        """Everything; the folder `out` appears at the end, whole."""
        self.run()
        source, remarks = self.tuned()
        n_units = len(self.units)
        n_parameters = sum(m.n_elements for m in self.net.matrices)
        config = json.loads((self.origin / "config.json").read_text()) if self.origin else {}
        replaced = self.replaced()
        kept = {self.net.aliases[m.name.partition("#")[0]] for m in self.net.every} - replaced
        original = sum(t.nbytes for t in map(self.net.source.__getitem__, self.net.source))
        kept_bytes = sum(self.net.source[k].nbytes for k in kept)
        if out.exists() and force:
            shutil.rmtree(out)
        rows = tuple(Row(**{**r, "shape": tuple(r["shape"])}) for r in self.journal.rows)
        self.check_budget()
        source = stack.with_order(source, self.journal.rows)
        n_bytes = store.finish(out, self.work, n_units, source, replaced, config, self.said(), self.origin)
        bits = 8 * (n_bytes - kept_bytes) / n_parameters
        return Report(
            str(out),
            self.job.recipe,
            bits,
            n_parameters,
            n_bytes,
            original,
            rows,
            time.perf_counter() - start,
            remarks,
        )

    def tuned(self) -> tuple[Mapping[str, Any], tuple[str, ...]]:
        """Runs the recipe's tuning on the packets; the source with what it changed of what is kept, and remarks."""
        tune = self.recipe.tune
        if tune is None or (tune.modules_only and self.origin is not None):
            return self.net.source, ()
        from .tune import LIMIT_BYTES, Tuning, state_bytes

        if not self.batches:
            return self.net.source, ("not tuned: there was no calibration text",)
        if (need := state_bytes(self)) > LIMIT_BYTES:
            return self.net.source, (
                f"not tuned: that takes up to {need >> 20:,} MB, the limit is {LIMIT_BYTES >> 20:,}",
            )
        tuning = Tuning(self)
        before = tuning.judge()
        tune(tuning)
        said = f"tuned: KL {before:.4f} to {tuning.judge():.4f} nats on calibration inputs set aside"
        return tuning.commit(), (said,)

    def check_budget(self) -> None:
        """Raise BadConfig where the packets missed the budget by more than the tolerance."""
        n = sum(m.n_elements for m in self.net.matrices)
        came = 8 * (self.packet_bytes() + self.overhead()) / n
        level = 8 * max(r["level_bytes"] for r in self.journal.rows) / n  # by so much stacks may stay below
        wanted, most = self.job.bits, self.tolerance()
        if wanted is not None and not wanted - most - level <= came <= wanted + most:
            shutil.rmtree(self.work)
            raise BadConfig(f"{self.job.bits} bits cannot be met: recipe {self.job.recipe!r} came to {came:.3f}")

    def tolerance(self) -> float:
        """Bits a parameter by which a budget may be missed."""
        return max(TOLERANCE, 8 * TOLERATED_BYTES / sum(m.n_elements for m in self.net.matrices))

    def said(self) -> dict[str, Any]:
        """The quantization_config of the result."""
        codecs = dict(sorted(self.journal.codecs.items()))
        return {"quant_method": store.METHOD, "format": store.FORMAT, "recipe": self.job.recipe,
                "settings": self.job.settings, "codecs": codecs, "keep": list(self.job.keep)}  # fmt: skip

    def follow(self) -> None:
        """The part of a process that is not the first under torchrun."""
        self.run()
        shutil.rmtree(self.work)

    def packet_bytes(self, n_units: int | None = None) -> int:
        n_units = len(self.units) if n_units is None else n_units
        return sum(len(p) for u in range(n_units) for p in store.load_unit(self.work, u).values())

    def run(self) -> None:
        """All units from where the journal stands."""
        if self.needs_fisher() and self.walk is not None:
            self._tick(0, 0, "statistics")
            folder = self.work / "fisher"
            shutil.rmtree(folder, ignore_errors=True)
            self.fisher = self.walk.fisher(folder, self.fisher_batches(), lambda what: self._tick(0, 0, what))
            shutil.rmtree(folder, ignore_errors=True)
            release()
        self.plan()
        release()
        total = sum(m.n_elements for m in self.net.matrices)
        for u in range(self.journal.done):
            self._replay(u)
        for u in range(self.journal.done, len(self.units)):
            done = sum(m.n_elements for _, ms in self.units[:u] for m in ms)
            name = self.units[u][0]
            self._tick(done, total, name)
            self._unit(u, lambda part, what, done=done: self._tick(done + part, total, what))
            self.journal.done = u + 1
            self.journal.save()
            for kind in ("hidden", "clean"):
                shutil.rmtree(self._spool(u - 1, kind), ignore_errors=True)
        self._tick(total, total, "")

    def needs_fisher(self) -> bool:
        """Whether there is a pass back: to share out a budget, or for the codec."""
        return self.job.bits is not None or self.recipe.statistics.fisher

    def _spool(self, u: int, kind: str = "hidden") -> Path:
        """Where the hidden states lie that unit u gave; "clean": those of the original model."""
        return self.work / f"{kind}-{u:05d}"

    def _unit(self, u: int, tick: Callable[[int, str], None]) -> None:
        name, ms = self.units[u]
        packets: dict[str, bytes] = {}
        last, moments, said = len(self.units) - 1, Moments(), self.recipe.statistics
        block, walk = 0 < u < last, self.walk
        drifts = said.drift and bool(self.net.blocks)
        if walk is not None and block and said.hessian:
            clean = Spool(self._spool(u - 1, "clean")) if drifts else None
            moments = walk.moments(name, Spool(self._spool(u - 1)), said.tokens == "attention", clean)
        elif walk is not None and u == last and ms:
            moments = self._head_moments(Spool(self._spool(u - 1)))
        release()
        if walk is not None and drifts and u < last:  # while the block has its own weights still
            self._advance(u, "clean")
        self._code(ms, moments, packets, tick)
        store.save_unit(self.work, u, packets)
        self._overlay(packets)
        if walk is not None and u < last:
            self._advance(u)
        if block:
            self.net.overlay.clear()
            self._replay(0)

    def _advance(self, u: int, kind: str = "hidden") -> None:
        """Hidden states behind unit u from those before it."""
        if not self.net.blocks:
            return
        assert self.walk is not None
        shutil.rmtree(self._spool(u, kind), ignore_errors=True)
        out = Spool(self._spool(u, kind))
        if u == 0:
            self.walk.stem(out)
        else:
            self.walk.forward(self.units[u][0], Spool(self._spool(u - 1, kind)), out)

    def _replay(self, u: int) -> None:
        if not 0 < u < len(self.units) - 1:
            self._overlay(store.load_unit(self.work, u))

    def _overlay(self, packets: dict[str, bytes]) -> None:
        """Let the network run with what the packets decode to."""
        params: dict[str, list[str]] = {}
        for name in packets:
            params.setdefault(name.partition("#")[0], []).append(name)
        by_name = {m.name: m for m in self.net.matrices}
        for param, names in params.items():

            def make(param: str = param, names: list[str] = names) -> Tensor:
                stored = self.net.source[self.net.aliases[param]].to(torch.float32, copy=True)
                for n in names:
                    by_name[n].put(stored, decode(packets[n], codecs=self.codecs))
                return stored

            self.net.overlay[self.net.aliases[param]] = make

    def _head_moments(self, spool: Spool) -> Any:
        assert self.walk is not None
        moments = Moments()
        with torch.no_grad():
            for i in range(self.walk.n_batches):
                moments.new_batch()
                self.walk.head(self.batches[i], spool.get(i), moments)
        moments.new_batch()
        distributed.sum_moments(moments)
        return moments

    # ---- one matrix

    def _shared(self, m: Matrix, fitted: Codec) -> str:
        """The key of the codec that packets of this matrix name."""
        if self.recipe.rates:
            return self._remember(fitted)
        # Where any rate will do, the rate is the encoder's affair: one codec stands for all.
        at = self.recipe.embedding if m.role == "embedding" and self.recipe.embedding else self.recipe.at
        return self._remember(Codec(at(self.recipe.nominal), self.job.recipe))

    def codec_at(self, m: Matrix) -> Callable[[float], Stage]:
        """The recipe's codec for a matrix, as a function of the planned rate."""
        if self.journal.step is not None and self.recipe.at_step is not None:
            at_step, step = self.recipe.at_step, self._step
            return lambda rate: at_step(step)
        return self.recipe.embedding if m.role == "embedding" and self.recipe.embedding else self.recipe.at

    def _remember(self, codec: Codec) -> str:
        key = codec.key()
        with self._lock:
            if key not in self.codecs:
                self.journal.codecs[key] = {"recipe": codec.recipe, "config": registry.config(codec.stage)}
                self.codecs.update(store.read_codecs({"codecs": {key: self.journal.codecs[key]}}))
        return key

    def _code(
        self, ms: list[Matrix], moments: Moments, packets: dict[str, bytes], tick: Callable[[int, str], None]
    ) -> None:
        def one(m: Matrix) -> tuple[bytes, Row]:
            h, notes = moments.hessian(m.name, self.coherence(m)), []
            if h is None and self.walk is not None and m.expert is not None:
                h = self._like(m, moments.hessian)
                how = "its neighbours' inputs stood in" if h is not None else "rounded without statistics"
                notes.append(f"no calibration token reached this expert; {how}")
            return self._one(m, h, moments.drift(m.name), notes, said[threading.get_ident()])

        said: dict[int, list[str]] = defaultdict(list)
        done = 0
        with warnings.catch_warnings(), ThreadPoolExecutor(self.threads) as pool:
            warnings.simplefilter("always", HessianWarning)
            show = warnings.showwarning

            def hear(message: Any, category: Any, *rest: Any, **more: Any) -> None:
                if issubclass(category, HessianWarning):  # raised in the thread that codes the matrix
                    said[threading.get_ident()].append(str(message))
                else:
                    show(message, category, *rest, **more)

            warnings.showwarning = hear
            for group in self._groups(ms):
                if self.journal.step is not None:
                    self._step = self._step_now(packets)
                for _ in range(1 + AGAIN):
                    rows, at = [], done
                    for m, (packet, row) in zip(group, pool.map(one, group), strict=True):
                        release()
                        packets[m.name] = packet
                        rows.append(asdict(row))
                        at += m.n_elements
                        tick(at, m.name)
                    if not self._missed(group, packets):
                        break
                done = at
                self.journal.rows += rows

    def _missed(self, group: list[Matrix], packets: Mapping[str, bytes]) -> bool:
        """Whether the last matrices of all missed the budget, so that only they can make that good; the step is set anew then."""
        if self.journal.step is None or self._ahead(packets):
            return False
        left, n = self._left(packets), sum(m.n_elements for m in group)
        if abs(left) <= 0.5 * self.tolerance() * sum(m.n_elements for m in self.net.matrices):
            return False
        self._step *= 2.0 ** min(max(left / n / self.journal.slope, -2.0), 2.0)
        return True

    def _groups(self, ms: list[Matrix]) -> list[list[Matrix]]:
        """Matrices of a unit that are coded with one step: all; of a network that is one unit half, then half of the rest, ….

        What the estimate of a rate was off by is made good by those behind, so the smallest come last.
        """
        if self.net.blocks:
            return [ms]
        total, done = sum(m.n_elements for m in ms), 0
        groups: dict[int, list[Matrix]] = defaultdict(list)
        for m in sorted(ms, key=lambda m: -m.n_elements):
            groups[min(int(-math.log2(1 - done / total)), 5)].append(m)
            done += m.n_elements
        return list(groups.values())

    def _one(
        self, m: Matrix, h: Tensor | None, drift: Tensor | None, notes: list[str], warned: list[str]
    ) -> tuple[bytes, Row]:
        warned.clear()
        w = self.weight(m)
        rate = self.journal.plan[m.name]
        s = self.sensitivity(m, h)
        if h is None and m.role == "embedding" and self.fisher is not None:
            h = s.hessian
        at, fisher = self.codec_at(m), self.recipe.statistics.fisher and self.fisher is not None
        hessian = h if self.recipe.statistics.hessian else None
        stats = Stats(hessian=hessian, importance=s.rows[:, None] if fisher else None, drift=drift)
        try:
            codec = Codec(at(rate), self.job.recipe).fit(w, stats)
            packet = codec.encode(w, shared=self._shared(m, codec))
        except BadInput as e:
            notes.append(f"coded by {FALLBACK} at {min(rate, 8.0):g} bits: {e}")
            fallback = registry.load(registry.recipe(FALLBACK).target)
            key = self._remember(Codec(fallback(), FALLBACK))
            packet = Codec(fallback(bits=min(rate, 8.0)), FALLBACK).fit(w).encode(w, shared=key)
        back = decode(packet, codecs=self.codecs)
        plain = replace(s, rows=torch.ones(m.shape[0]))
        error = plain.loss(back - w) / max(plain.loss(w), 1e-30)
        note = "; ".join([*notes, *dict.fromkeys(warned)])
        losses = stack.losses(packet, w, s, self.codecs)
        return packet, Row(m.name, m.shape, rate, 8 * len(packet) / m.n_elements, error, note, *losses)
