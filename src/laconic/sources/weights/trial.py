"""A whole model in memory on which policies try out what they have in mind.

candidates: every matrix coded at every rate, once, with the original model's moments ─▶ disk
choice (n_matrices,) of rates ─▶ weights swapped in ─▶ KL against the original, nats a token
"""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ...allocate.table import fill
from ...core.errors import BadConfig, BadInput
from ...core.packet import Codec, decode
from ...core.stage import Stats
from ...quantize.rounding import HessianWarning
from .calibrate import call

if TYPE_CHECKING:
    from torch import Tensor

    from .compress import Run
    from .network import Matrix, Network

ORIGINAL = -1
SAMPLES = 16  # calibration inputs (windows of a text) that a trial judges by


class Loaded:
    """A copy of a network's model with all its parameters, in float32; tied ones are one tensor.

    The network itself is left as it is, without weights.
    """

    def __init__(self, net: Network) -> None:
        self.model = copy.deepcopy(net.model)
        self._aliases = net.aliases
        self._stored: dict[str, nn.Parameter] = {}
        for path, module in self.model.named_modules():
            for key, p in module._parameters.items():
                if p is None:
                    continue
                name = f"{path}.{key}" if path else key
                stored = net.aliases[name]
                if stored not in self._stored:
                    # a module's tensors are the user's own
                    self._stored[stored] = nn.Parameter(net.value(name).clone(), requires_grad=False)
                module._parameters[key] = self._stored[stored]

    def parameter(self, m: Matrix) -> nn.Parameter:
        """The parameter that a matrix is, or is a slice of."""
        return self._stored[self._aliases[m.name.partition("#")[0]]]

    def named(self) -> dict[str, nn.Parameter]:
        """Every parameter by the name under which the source has it."""
        return self._stored

    def put(self, m: Matrix, weight: Tensor) -> None:
        """Let the model run with this matrix (n_out, n_in)."""
        with torch.no_grad():
            m.put(self.parameter(m), weight)

    def output(self, sample: dict[str, Any]) -> Tensor:
        """(n_tokens, n) logits of the model for a sample; what else it gives, where it has none."""
        return flat_output(call(self.model, sample))


def flat_output(out: Any) -> Tensor:
    """What a model gave as (n, width): logits, else the last hidden state, else the output itself."""
    for name in ("logits", "last_hidden_state"):
        if getattr(out, name, None) is not None:
            out = getattr(out, name)
    while isinstance(out, (tuple, list)):
        out = out[0]
    return out.float().reshape(-1, out.shape[-1])


def divergence(reference: Tensor, out: Tensor, logits: bool) -> Tensor:
    """Mean KL(reference ‖ out) in nats over (n_tokens, n) logits; of outputs that are none, half the mean squared distance.

    The latter is the KL of unit Gaussians around them.
    """
    if not logits:
        return 0.5 * (reference - out).square().sum(-1).mean()
    p, q = reference.log_softmax(-1), out.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()


def samples_of(batches: Sequence[dict[str, Any]], n: int, size: int = 1) -> list[dict[str, Any]]:
    """Up to n inputs, evenly spread over the batches, as samples of up to `size` that are of one batch."""
    sizes = [len(next(v for v in b.values() if isinstance(v, torch.Tensor))) for b in batches]
    where = [(b, i) for b, size in enumerate(sizes) for i in range(size)]
    pick = np.linspace(0, len(where) - 1, min(n, len(where))).round().astype(int)

    def sample(b: int, at: list[int]) -> dict[str, Any]:
        return {k: v[at] if isinstance(v, torch.Tensor) and len(v) == sizes[b] else v for k, v in batches[b].items()}

    inside = [[where[j][1] for j in pick if where[j][0] == b] for b in range(len(batches))]
    return [sample(b, at[i : i + size]) for b, at in enumerate(inside) for i in range(0, len(at), size)]


class Trial:
    """What a policy may ask; matrices and rates by number, a choice is the number of a rate for every matrix.

    matrices, rates: of the run. whole: the original model in memory. samples: calibration inputs it judges by.
    Deterministic. Raises BadInput without calibration inputs, BadConfig where the recipe names no rates.
    """

    def __init__(self, run: Run, n_samples: int = SAMPLES) -> None:
        if not run.batches:
            raise BadInput(f"recipe {run.job.recipe!r} tries rates on the model: it needs a calibration text")
        if not run.recipe.rates:
            raise BadConfig("a trial of a recipe without a list of rates")
        self._run = run
        self.matrices: list[Matrix] = run.net.matrices
        self.rates = run.recipe.rates
        self.samples = samples_of(run.batches, n_samples)
        self.folder = Path(run.work) / "trial"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def names(self) -> list[str]:
        """Names of the matrices."""
        return [m.name for m in self.matrices]

    @property
    def blocks(self) -> list[list[int]]:
        """Numbers of the matrices of each block of the chain."""
        at = {m.name: i for i, m in enumerate(self.matrices)}
        return [[at[m.name] for m in self._run.net.below(b)] for b in self._run.net.blocks]

    @property
    def block_names(self) -> list[str]:
        """Names of the blocks' modules."""
        return self._run.net.blocks

    @cached_property
    def whole(self) -> Loaded:
        """The original model."""
        return Loaded(self._run.net)

    @cached_property
    def _now(self) -> list[int]:
        """The choice that `whole` holds."""
        return [ORIGINAL] * len(self.matrices)

    # ---- what each rate costs and gives

    @property
    def bits(self) -> np.ndarray:
        """(n_matrices, n_rates) bits of the real packets; inf where the codec refuses the matrix."""
        return self._table[0]

    @property
    def nats(self) -> np.ndarray:
        """(n_matrices, n_rates) loss of each, estimated from the Fisher information: ½ Σ rows_i d_i H d_iᵀ."""
        return self._table[1]

    @property
    def squares(self) -> np.ndarray:
        """(n_matrices, n_rates) ‖ΔW‖²."""
        return self._table[2]

    @cached_property
    def _table(self) -> np.ndarray:
        n, rates = len(self.matrices), len(self.rates)
        todo = [(i, k) for i in range(n) for k in range(rates)]
        table = np.full((3, n, rates), np.inf)
        with ThreadPoolExecutor(max(self._run.threads, 1)) as pool:
            for (i, k), row in zip(todo, pool.map(lambda ik: self._code(*ik), todo), strict=True):
                table[:, i, k] = row
                self._tick(i * rates + k, len(todo), f"candidates: {self.matrices[i].name}")
        return table

    def _tick(self, done: int, total: int, what: str) -> None:
        if self._run.progress:
            self._run.progress(done, total, what)

    def _code(self, i: int, k: int) -> tuple[float, float, float]:
        try:
            packet, back = self._coded(i, self.rates[k])
        except BadInput:
            return np.inf, np.inf, np.inf
        np.save(self._path(i, k), back.numpy())
        error = back - self._run.weight(self.matrices[i])
        return (
            8.0 * len(packet),
            self._run.sensitivity(self.matrices[i]).loss(error),
            float(error.double().square().sum()),
        )

    def _coded(self, i: int, rate: float) -> tuple[bytes, Tensor]:
        run, m = self._run, self.matrices[i]
        w = run.weight(m)
        at = run.recipe.embedding if m.role == "embedding" and run.recipe.embedding else run.recipe.at
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HessianWarning)  # the walk will say it for what it codes
            codec = Codec(at(rate)).fit(w, self.statistics(i))
            packet = codec.encode(w, shared="00000000")
        return packet, decode(packet, codecs={"00000000": codec})

    def statistics(self, i: int) -> Stats:
        """What the recipe's codec is fitted with."""
        run = self._run
        s, said = run.sensitivity(self.matrices[i]), run.recipe.statistics
        return Stats(
            hessian=s.hessian if said.hessian and run.fisher is not None else None,
            importance=s.rows[:, None] if said.fisher else None,
        )

    def packet_bits(self, i: int, rate: float) -> float:
        """Bits of the packet of one matrix at any rate that the recipe's codec takes. Raises BadInput where it is refused."""
        return 8.0 * len(self._coded(i, rate)[0])

    def _path(self, i: int, k: int) -> Path:
        return self.folder / f"{i:06d}-{k}.npy"

    def candidate(self, i: int, k: int) -> Tensor:
        """(n_out, n_in) matrix i as it decodes at rate k; the original for k = -1."""
        if k == ORIGINAL:
            return self._run.weight(self.matrices[i])
        if not np.isfinite(self.bits[i, k]):
            raise BadConfig(f"{self.matrices[i].name}: refused at {self.rates[k]:g} bits")
        return torch.from_numpy(np.load(self._path(i, k)))

    def rates_of(self, choice: Sequence[int] | np.ndarray) -> list[float]:
        """What a policy gives back for a choice."""
        return [self.rates[int(k)] for k in choice]

    def filled(self, choice: Sequence[int] | np.ndarray, budget: float) -> np.ndarray:
        """A choice with what it leaves of the budget spent where the estimate says that it saves most."""
        return fill(self.bits, np.where(np.isfinite(self.nats), self.nats, np.inf), np.asarray(choice), budget)

    def level(self, rate: float) -> int:
        """Number of a rate."""
        if rate not in self.rates:
            raise BadConfig(f"{rate:g} bits; this recipe has {', '.join(f'{r:g}' for r in self.rates)}")
        return self.rates.index(rate)

    @cached_property
    def row_scores(self) -> dict[str, Tensor]:
        """Of every matrix by name, what its rows (n_out,) would cost at the lowest rate; see `scores.row_scores`."""
        from .scores import row_scores

        return row_scores(self)

    # ---- how the model fares

    @cached_property
    def reference(self) -> list[Path]:
        """What the original gives for each sample, half floats on disk."""
        paths, whole = [], self.original()
        for i, sample in enumerate(self.samples):
            paths.append(self.folder / f"reference-{i:04d}.npy")
            with torch.no_grad():
                np.save(paths[-1], whole.output(sample).half().numpy())
        return paths

    @cached_property
    def speaks(self) -> bool:
        """Whether the model gives logits."""
        with torch.no_grad():
            return getattr(call(self.whole.model, self.samples[0]), "logits", None) is not None

    def loss(self, choice: Sequence[int] | np.ndarray, n: int | None = None) -> float:
        """Mean KL from the original in nats a token with these candidates (-1: the original), over the first n samples."""
        reference, total = self.reference[:n], 0.0
        self._hold([int(k) for k in choice])
        for sample, path in zip(self.samples, reference, strict=False):
            before = torch.from_numpy(np.load(path)).float()
            with torch.no_grad():
                total += float(divergence(before, self.whole.output(sample), self.speaks))
        return total / len(reference)

    def alone(self, i: int, k: int, n: int | None = None) -> float:
        """The loss with matrix i at rate k and all others as they were."""
        choice = [ORIGINAL] * len(self.matrices)
        choice[i] = k
        return self.loss(choice, n)

    def original(self) -> Loaded:
        """The original model, for scores that look into it."""
        self._hold([ORIGINAL] * len(self.matrices))
        return self.whole

    def _hold(self, choice: list[int]) -> None:
        """Swap candidates in; only those that differ from the last choice are read."""
        for i, (old, new) in enumerate(zip(self._now, choice, strict=True)):
            if old != new:
                self.whole.put(self.matrices[i], self.candidate(i, new))
                self._now[i] = new
