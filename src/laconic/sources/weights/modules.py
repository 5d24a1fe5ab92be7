"""Any torch module, compressed in memory."""

from __future__ import annotations

import copy
import shutil
import tempfile
import time
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...core.errors import BadInput
from . import calibrate, stack, store
from .compress import Job, Progress, Report, Row, Run, calibration_key
from .network import Network

if TYPE_CHECKING:
    from .recipe import WeightRecipe


def compress_module(
    module: nn.Module, recipe: WeightRecipe, job: Job, calibration: Any, out: str | PathLike[str] | None,
    progress: Progress | None, threads: int = 2,
) -> tuple[nn.Module, Report]:  # fmt: skip
    """(a copy of the module whose matrices are what the packets decode to, report).

    calibration: what `calibrate.batches` takes; None: coded without statistics. out: also write the packets and the other
    tensors to this folder; `laconic.weights.load(out, into=module)` puts them into a module of the same kind.
    """
    start = time.perf_counter()
    source = {k: v.detach() for k, v in _tensors(module).items()}
    skeleton = copy.deepcopy(module).eval()
    if hasattr(getattr(skeleton, "config", None), "use_cache"):
        skeleton.config.use_cache = False
    with torch.no_grad():
        empty: dict[int, nn.Parameter] = {}
        for m in skeleton.modules():
            for k, p in m._parameters.items():
                if p is not None:  # parameters that are shared stay shared
                    m._parameters[k] = empty.setdefault(id(p), nn.Parameter(p.detach().to("meta"), requires_grad=False))
    net = Network(skeleton, source, job.keep)
    net.check()
    batches = [] if calibration is None else calibrate.batches(calibration)
    work = Path(tempfile.mkdtemp(prefix="laconic-"))
    try:
        run = Run(net, batches, recipe, job, work / "job", None, threads, progress, calibration_key(calibration))
        run.open(False)
        run.run()
        tuned, remarks = run.tuned()
        run.check_budget()
        result = copy.deepcopy(module).eval()
        params = dict(result.named_parameters())
        packed = store.Packets(run.work, len(run.units), run.codecs)
        with torch.no_grad():
            for m in net.matrices:
                m.put(
                    params[m.name.partition("#")[0]].data,
                    packed.decode(m.name).to(params[m.name.partition("#")[0]].dtype),
                )
            for k in source.keys() - run.replaced():
                params[k].copy_(tuned[k])
        n = sum(m.n_elements for m in net.matrices)
        n_bytes = run.packet_bytes() + run.overhead()
        rows = tuple(Row(**{**r, "shape": tuple(r["shape"])}) for r in run.journal.rows)
        original = sum(t.nbytes for t in source.values())
        if out is not None:
            target = Path(out)
            if target.exists():
                raise FileExistsError(f"{target} exists")
            kept = {**tuned, **{k: b for k, b in module.named_buffers() if k in module.state_dict()}}
            kept = {**stack.with_order(kept, run.journal.rows)}
            n_bytes = store.finish(target, run.work, len(run.units), kept, run.replaced(), {}, run.said(), None)
        seconds = time.perf_counter() - start
        report = Report(str(out or ""), job.recipe, 8 * n_bytes / n, n, n_bytes, original, rows, seconds, remarks)
        return result, report
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _tensors(module: nn.Module) -> dict[str, Any]:
    found = dict(module.named_parameters(remove_duplicate=True))
    if not found:
        raise BadInput(f"{type(module).__name__} has no parameters")
    if any(p.device.type == "meta" for p in found.values()):
        raise BadInput(f"{type(module).__name__} has parameters without values (on the meta device); load it first")
    return found
