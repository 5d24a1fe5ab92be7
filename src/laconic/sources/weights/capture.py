"""Listening to a model that runs: what meets each matrix, and what flows back to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .network import Matrix

if TYPE_CHECKING:
    from torch import Tensor

Listener = Callable[[Matrix, "Tensor", "Tensor"], None]  # matrix, inputs (n_tokens, n_in), raw output of the call


class Capture(TorchFunctionMode):
    """Calls `listen(matrix, inputs, output)` for every product with one of the given matrices.

    It sees the product itself, whatever module or function makes it: linear layers, layers that keep their weight
    transposed, convolutions (their inputs unfolded into columns), slices of stacks of experts, embeddings (inputs are ids).
    """

    def __init__(self, matrices: Iterable[Matrix], parameter: Callable[[str, str], Any], listen: Listener) -> None:
        super().__init__()
        self._where: dict[int, tuple[Any, list[Matrix]]] = {}
        self._listen = listen
        for m in matrices:
            p = parameter(m.module, m.param)
            self._where.setdefault(p.untyped_storage().data_ptr(), (p, []))[1].append(m)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func in _INPUT:
            at, weight_at = _INPUT[func]
            x = args[at] if len(args) > at else kwargs.get("input")
            weight = args[weight_at] if len(args) > weight_at else kwargs.get("weight")
            if isinstance(weight, torch.Tensor) and (matrix := self._find(weight)) is not None:
                self._listen(matrix, _columns(func, x, weight, args, kwargs), out)
        return out

    def _find(self, weight: Tensor) -> Matrix | None:
        if weight.device.type == "meta":
            return None
        p, found = self._where.get(weight.untyped_storage().data_ptr(), (None, []))
        if p is None:
            return None
        if found[0].expert is None:
            return found[0] if weight.numel() == p.numel() else None
        each = p.numel() // p.shape[0]
        if weight.numel() != each:
            return None
        e = weight.storage_offset() // each
        return next((m for m in found if m.expert == e), None)


_INPUT: dict[Any, tuple[int, int]] = {  # function -> positions of the input and the weight
    F.linear: (0, 1), F.embedding: (0, 1), F.conv1d: (0, 1), F.conv2d: (0, 1), torch.conv1d: (0, 1), torch.conv2d: (0, 1),
    torch.addmm: (1, 2), torch.matmul: (0, 1), torch.mm: (0, 1), torch.Tensor.matmul: (0, 1),
    torch.Tensor.__matmul__: (0, 1),
}  # fmt: skip


def _columns(func: Any, x: Tensor, weight: Tensor, args: Any, kwargs: Any) -> Tensor:
    """The inputs as rows (n, n_in) of what the matrix is multiplied with."""
    x = x.detach()
    if func is F.embedding:
        return x.reshape(-1)
    if func in (F.conv1d, F.conv2d, torch.conv1d, torch.conv2d):
        return unfolded(x, weight, *(_argument(args, kwargs, i, name) for i, name in _CONV))
    return x.reshape(-1, x.shape[-1])


_CONV = ((3, "stride"), (4, "padding"), (5, "dilation"), (6, "groups"))


def _argument(args: Any, kwargs: Any, at: int, name: str) -> Any:
    default = 0 if name == "padding" else 1
    return args[at] if len(args) > at else kwargs.get(name, default)


def unfolded(x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> Tensor:
    """Patches of a convolution's input: (n_positions · groups, channels / groups · kernel)."""
    if weight.ndim == 3:  # one dimension is two of which one is 1
        x, weight = x[:, :, None], weight[:, :, None]
        stride, dilation = (1, _last(stride)), (1, _last(dilation))
        padding = padding if isinstance(padding, str) else (0, _last(padding))
    kernel = tuple(weight.shape[2:])
    if isinstance(padding, str):
        d = dilation if isinstance(dilation, tuple) else (dilation,) * 2
        padding = tuple(a * (k - 1) // 2 for a, k in zip(d, kernel, strict=True)) if padding == "same" else 0
    patches = F.unfold(x, kernel, dilation=dilation, padding=padding, stride=stride)  # (batch, channels·kernel, n)
    n_in = patches.shape[1] // int(groups)
    return patches.reshape(patches.shape[0], int(groups), n_in, -1).permute(0, 3, 1, 2).reshape(-1, n_in)


def _last(value: Any) -> int:
    return int(value[-1]) if isinstance(value, (tuple, list)) else int(value)


class Moments:
    """Second moments of the inputs of matrices, in float32; matrices that share an input share one.

    count: number of inputs that each matrix met. clean: what the original blocks would have given the matrices in this batch,
    by name; where it is, Σ (x_f − x)ᵀ x is summed into `cross`. pooled, n_pooled: the same as total and count of the mean over
    the positions of an input, where a convolution has several.
    """

    def __init__(self) -> None:
        self.total: dict[str, Tensor] = {}
        self.count: dict[str, float] = {}
        self.leader: dict[str, str] = {}
        self.weights: Tensor | None = None  # (n_tokens,) of the batch that runs now
        self.clean: dict[str, Tensor] = {}
        self.cross: dict[str, Tensor] = {}
        self.pooled: dict[str, Tensor] = {}
        self.n_pooled: dict[str, float] = {}
        self._batch: dict[tuple[int, Any], tuple[Tensor, str]] = {}

    def new_batch(self, weights: Tensor | None = None) -> None:
        """To be called before each batch, and behind the last one: until then its inputs are held."""
        self._batch, self.clean = {}, {}
        self.weights = weights

    def __call__(self, matrix: Matrix, x: Tensor, out: Tensor) -> None:
        if matrix.role == "embedding" and not x.is_floating_point():
            return
        key = (x.data_ptr(), x.shape)
        known = self._batch.get(key)
        if known is not None and self.leader.get(matrix.name, known[1]) == known[1]:
            self.leader[matrix.name] = known[1]
            return
        name = self.leader.setdefault(matrix.name, matrix.name)
        self._batch[key] = (x, name)  # kept alive, so that no other input of this batch gets its address
        w = self.weights
        if w is not None and w.numel() == x.shape[0]:
            gram = (x * w[:, None]).T @ x
        else:
            gram = x.T @ x
        self.total[name] = gram if name not in self.total else self.total[name].add_(gram)
        self.count[name] = self.count.get(name, 0) + x.shape[0]
        if (n := positions(matrix, out)) > 1:
            mean = x.reshape(out.shape[0], n, -1, x.shape[1]).mean(1).reshape(-1, x.shape[1])
            gram = mean.T @ mean
            self.pooled[name] = gram if name not in self.pooled else self.pooled[name].add_(gram)
            self.n_pooled[name] = self.n_pooled.get(name, 0) + len(mean)
        if (original := self.clean.get(matrix.name)) is not None and original.shape == x.shape:
            moved = (original - x).T @ x
            self.cross[name] = moved if name not in self.cross else self.cross[name].add_(moved)

    def hessian(self, name: str, coherence: float = 0.0) -> Tensor | None:
        """E[x xᵀ] at a matrix, what few inputs leave open drawn to the diagonal; None where it met nothing.

        From n inputs of width k the off-diagonal is k / (k + n) less than was counted: nothing to speak of where tokens are
        many, and all the difference for a head that sees one vector a picture.

        coherence c, of the gradients at the n positions of a convolution: errors that all positions have in common add up
        before they are squared, (1 − c) E[x xᵀ] + c n E[m mᵀ] with m = mean of x over positions. Of the latter, whose inputs
        are n times fewer, k / (k + their number) is taken to lie as E[x xᵀ] does.
        Source: Eschenhagen et al. 2023 (2311.00636), section 3: "expand" is c = 0, "reduce" is c = 1. Differs: between them.
        """
        leader = self.leader.get(name, name)
        n = self.count.get(leader, 0)
        if not n:
            return None
        h = self.total[leader] / n
        share = len(h) / (len(h) + n)
        h = (1 - share) * h + share * h.diagonal().diag()
        if not coherence or leader not in self.pooled:
            return h
        few = self.n_pooled[leader]
        mean, share = self.pooled[leader] / few, len(h) / (len(h) + few)
        alike = h * (mean.trace() / h.trace().clamp(min=1e-30))
        return (1 - coherence) * h + coherence * (n / few) * ((1 - share) * mean + share * alike)

    def drift(self, name: str) -> Tensor | None:
        """E[(x_f − x) xᵀ] at a matrix; None where it was not listened for."""
        leader = self.leader.get(name, name)
        return self.cross[leader] / self.count[leader] if leader in self.cross else None


class Inputs:
    """The inputs of matrices in one batch, as they are."""

    def __init__(self) -> None:
        self.seen: dict[str, Tensor] = {}

    def __call__(self, matrix: Matrix, x: Tensor, out: Tensor) -> None:
        self.seen[matrix.name] = x


class Frequencies:
    """How often each row of an embedding was looked up."""

    def __init__(self) -> None:
        self.count: dict[str, Tensor] = {}

    def __call__(self, matrix: Matrix, ids: Tensor, out: Tensor) -> None:
        if matrix.role == "embedding" and not ids.is_floating_point():
            n = torch.bincount(ids, minlength=matrix.shape[0]).float()
            self.count[matrix.name] = n + self.count[matrix.name] if matrix.name in self.count else n


def positions(matrix: Matrix, out: Tensor) -> int:
    """At how many positions of one input a convolution is; 1 for other matrices, whose positions are inputs of their own."""
    return out[0, 0].numel() if matrix.layout == "kernel" and len(out) else 1


class Gradients:
    """Squared gradients at the outputs of matrices, by row: (n_out,) each. Embeddings: by column, (n_in,).

    shared: of convolutions, the part that the positions of an input have in common, over all rows.
    """

    def __init__(self) -> None:
        self.total: dict[str, Tensor] = {}
        self.shared: dict[str, float] = {}

    def coherence(self) -> dict[str, float]:
        """Mean correlation of the gradients at two positions of an input: 0 independent of each other, 1 all the same."""
        return {k: min(max(s / max(float(self.total[k].sum()), 1e-30), 0.0), 1.0) for k, s in self.shared.items()}

    def __call__(self, matrix: Matrix, x: Tensor, out: Tensor) -> None:
        axis = 1 if matrix.layout == "kernel" else -1

        def back(g: Tensor) -> None:
            rows = g.detach().movedim(axis, -1).reshape(-1, g.shape[axis]).square().sum(0)
            self.total[matrix.name] = self.total[matrix.name] + rows if matrix.name in self.total else rows
            if (n := positions(matrix, g)) > 1:  # Σ over pairs of positions, of the mean pair as of the mean square
                pairs = float(g.detach().flatten(2).sum(2).square().sum()) - float(rows.sum())
                self.shared[matrix.name] = self.shared.get(matrix.name, 0.0) + pairs / (n - 1)

        if not out.requires_grad and out.is_leaf:
            out.requires_grad_(True)
        if out.requires_grad:
            out.register_hook(back)


class AttentionReceived:
    """Attention that each token receives, summed over heads and queries: the softmax of an eager attention, overheard."""

    def __init__(self) -> None:
        self.received: Tensor | None = None

    def mode(self) -> TorchFunctionMode:
        """To be entered while a block runs."""
        mine = self

        class Overhear(TorchFunctionMode):
            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                out = func(*args, **(kwargs or {}))
                if func in (F.softmax, torch.softmax, torch.Tensor.softmax) and out.ndim == 4:
                    mine.received = out.detach().float().sum((1, 2))  # (batch, n_tokens)
                return out

        return Overhear()
