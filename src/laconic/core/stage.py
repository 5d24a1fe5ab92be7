"""`Part` and `Stage`: what everything between an array and bytes is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np

from .errors import BadConfig

if TYPE_CHECKING:
    from torch import Tensor

FLOATS = ("float16", "bfloat16", "float32", "float64")
ROLES = ("codes", "scales", "zeros", "codebooks", "norms", "indices", "models", "header")

Side = dict[str, Any]  # name -> np.ndarray, or child name -> its Side; "payload" -> bytes of a child codec


class Kind(Enum):
    """What flows between stages."""

    ARRAY = "array"  # torch.Tensor
    SYMBOLS = "symbols"  # Symbols
    BYTES = "bytes"  # bytes


class Leaf(NamedTuple):
    """A declared array of side information: its dtype on the wire and its line in the rate ledger."""

    dtype: str
    role: str


class Symbols(NamedTuple):
    """Integers ready for an entropy coder.

    index: any shape; unsigned and below `alphabet`, or signed int32 when `alphabet` is 0 (unbounded).
    """

    index: np.ndarray  # type: ignore[assignment]  # the field's word; tuple.index is of no use here
    alphabet: int


class Levels(NamedTuple):
    """A reconstructed matrix taken apart, for products and formats that work on its codes.

        x̂ = (level · step + offset) · column_scale, then `decode` of the turns, the last first

    level: integers (m, n); with `table`, (k,) float32, places in it. step, offset: float32 (m, ⌈n / group⌉), one for each
    run of `group` columns, of which the last may be short; offset may be None. column_scale: float32 (n,) or None.
    turns: stages that turn the last axis (`Stage.orthogonal`). sent: side information from which step and offset came.
    """

    level: np.ndarray
    step: np.ndarray
    group: int
    offset: np.ndarray | None = None
    table: np.ndarray | None = None
    column_scale: np.ndarray | None = None
    turns: tuple[Stage, ...] = ()
    sent: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Stats:
    """What is known about how errors hurt; every statistic is optional.

    hessian: (n, n) float32, second moment of the inputs that meet the last axis: the error of a row d costs d H dᵀ.
    importance: weight of each squared error, shape of x or of its last axis.
    mask: bool, shape of x; True where another part stores the value exactly.
    drift: (n, n) float32, E[(x_f − x) xᵀ] with x the inputs as they are, after what was coded before, and x_f what they were in
        the original model; with it a codec can aim at the original outputs W x_f instead of W x.
    """

    hessian: Tensor | None = None
    importance: Tensor | None = None
    mask: Tensor | None = None
    drift: Tensor | None = None

    def present(self) -> list[str]:
        """Names of the statistics that are given."""
        return [f.name for f in dataclasses.fields(self) if getattr(self, f.name) is not None]


def learned(dtype: str, role: str = "codebooks") -> Any:
    """Declare a field as a learned array: None until `fit`, then a NumPy array of `dtype`, counted under `role`."""
    return field(default=None, repr=False, compare=False, metadata={"learned": Leaf(dtype, role)})


def encoder_only() -> Any:
    """Declare a field that only the encoder needs (statistics, warm starts); it never reaches a packet."""
    return field(default=None, repr=False, compare=False, metadata={"encoder_only": True})


@dataclass(frozen=True)
class Part:
    """Base of everything configurable: stages, codebooks, scales, roundings, entropy models.

    The fields of a subclass (a frozen dataclass) are its configuration: numbers, strings, booleans, None, other parts,
    and tuples of these. `learned` and `encoder_only` fields are not configuration.
    """

    version: ClassVar[int] = 1  # of the bitstream; a change of what decoders expect is a new version

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; learned arrays are rounded to the dtype in which they are sent."""
        for name, leaf in self.learned_fields():
            if changes.get(name) is not None:
                changes[name] = np.ascontiguousarray(_numpy(changes[name]), dtype=leaf.dtype)
        return dataclasses.replace(self, **changes)

    @classmethod
    def learned_fields(cls) -> tuple[tuple[str, Leaf], ...]:
        """The learned arrays that this class declares."""
        return _fields(cls)[0]  # type: ignore[arg-type]

    @classmethod
    def config_fields(cls) -> tuple[str, ...]:
        """Names of the fields that are configuration."""
        return _fields(cls)[1]  # type: ignore[arg-type]

    def parts(self) -> Iterator[tuple[str, Part]]:
        """Nested parts in field order, tuples numbered: `("codebook", …)`, `("stages.0", …)`."""
        for name in self.config_fields():
            value = getattr(self, name)
            if isinstance(value, Part):
                yield name, value
            elif isinstance(value, tuple):
                yield from ((f"{name}.{i}", v) for i, v in enumerate(value) if isinstance(v, Part))

    def arrays(self) -> dict[str, tuple[Leaf, np.ndarray | None]]:
        """Every learned array below this part by dotted path; None where it is not fitted."""
        own = {name: (leaf, getattr(self, name)) for name, leaf in self.learned_fields()}
        for prefix, part in self.parts():
            own.update({f"{prefix}.{k}": v for k, v in part.arrays().items()})
        return own

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> Self:
        """The same part with its learned arrays set from what `arrays()` named."""
        changes: dict[str, Any] = {name: arrays[name] for name, _ in self.learned_fields() if name in arrays}
        for prefix, part in self.parts():
            below = {k[len(prefix) + 1 :]: v for k, v in arrays.items() if k.startswith(prefix + ".")}
            if not below:
                continue
            name, _, index = prefix.partition(".")
            if index:
                items = list(changes.get(name, getattr(self, name)))
                items[int(index)] = part.with_arrays(below)
                changes[name] = tuple(items)
            else:
                changes[name] = part.with_arrays(below)
        return self.replace(**changes) if changes else self


@cache
def _fields(cls: type[Part]) -> tuple[tuple[tuple[str, Leaf], ...], tuple[str, ...]]:
    fields = dataclasses.fields(cls)
    learned_ = tuple((f.name, f.metadata["learned"]) for f in fields if "learned" in f.metadata)
    return learned_, tuple(f.name for f in fields if not f.metadata)


@dataclass(frozen=True)
class Stage(Part):
    """One step between an array and bytes, and the same step back.

    Class attributes (properties where they depend on the fields)
    ----------
    takes, gives: the kinds; a chain refuses a mismatch when it is built.
    side: declared side information of `encode`; sent, counted and checked.
    lossless: decode(encode(x)) is x to the last bit, NaN and Inf included.
    accepts: dtypes of the arrays that a codec which starts with this stage takes.
    casts: whether those arrays are handed to it as float32.
    deterministic: the same input gives the same bytes on every run.
    learns_exactly: `fit` on the same input gives the same arrays on every machine; not where it descends in floats.
    payload_role: the ledger line of the bytes that a stage giving BYTES returns; None where they are always empty.
    holds_codecs: the children are whole codecs with payloads of their own, not steps that hand on to each other.
    keeps_rate: told any rate in bits, the encoder keeps to it in real bytes, and decoders need not know it.
    orthogonal: ARRAY -> ARRAY, an orthogonal map of the last axis without side information; encode of a row's inputs and
        decode of the row leave their product as it is.
    """

    takes: ClassVar[Kind]
    gives: ClassVar[Kind]
    side: ClassVar[Mapping[str, Leaf]] = {}
    lossless: ClassVar[bool] = False
    accepts: ClassVar[tuple[str, ...]] = FLOATS
    casts: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    learns_exactly: ClassVar[bool] = True
    payload_role: ClassVar[str | None] = "codes"
    holds_codecs: ClassVar[bool] = False
    keeps_rate: ClassVar[bool] = False
    orthogonal: ClassVar[bool] = False

    def fit(self, x: Any, stats: Stats | None = None) -> Self:
        """Learn from `x` and return a new stage; the default has nothing to learn."""
        return self

    def push(self, stats: Stats) -> Stats:
        """What `stats` become behind this stage. The default refuses rather than hand on what no longer holds."""
        if stats.present():
            raise BadConfig(
                f"{type(self).__name__} cannot say what {', '.join(stats.present())} become behind it; "
                "put it before the stages that do not need them, or fit without statistics"
            )
        return stats

    def encode(self, x: Any) -> tuple[Any, Side]:
        """x -> (y, side)."""
        raise NotImplementedError(f"{type(self).__name__}.encode")

    def decode(self, y: Any, side: Side) -> Any:
        """(y, side) -> x̂. Raises CorruptStream for anything `encode` cannot have made."""
        raise NotImplementedError(f"{type(self).__name__}.decode")

    def levels(self, y: Any, side: Side) -> Levels | None:
        """What `decode` would give as integers and steps; None where it is not made of them, or is no matrix.

        Raises CorruptStream as `decode` does.
        """
        return None

    def children(self) -> Mapping[str, Stage]:
        """The stages of a combinator by the name under which their side information is kept; none by default."""
        return {}


def _numpy(x: Any) -> np.ndarray:
    return x if isinstance(x, np.ndarray) else np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
