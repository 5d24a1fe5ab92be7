"""Where vectors come from that need not fit in memory: arrays, .npy files, Parquet files, iterators of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...core.errors import BadConfig, BadInput


class Stream(NamedTuple):
    """n: vectors, None where it is not known. sample: some of them, (at most k, dim), spread over all where they can be.
    batches: (rows, first) -> the vectors from number `first` on, (rows, dim) at a time, the last batch shorter. said: what tells
    this source from others, for a build that goes on."""

    n: int | None
    dim: int
    sample: Callable[[int], np.ndarray]
    batches: Callable[[int, int], Iterator[np.ndarray]]
    said: str


def stream(source: Any, column: str | None = None) -> Stream:
    """A path to .npy or .parquet, an array (n, dim), or an iterable of arrays (any, dim).

    column: of a Parquet file, the only one by default. Raises BadInput for what holds no vectors, BadConfig where Parquet
    cannot be read here.
    """
    if isinstance(source, (str, PathLike)):
        path = Path(source)
        if path.suffix in (".parquet", ".pq"):
            return _parquet(path, column)
        return _array(_mapped(path), f"{path.resolve()} {path.stat().st_size}")
    if hasattr(source, "shape"):
        return _array(source, f"array {tuple(source.shape)}")
    if isinstance(source, Iterable):
        return _iterator(source)
    raise BadInput(f"vectors from a {type(source).__name__}; a path, an array or an iterable of arrays is right")


def _mapped(path: Path) -> np.ndarray:
    try:
        x = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as e:
        raise BadInput(f"{path} is no .npy file: {e}") from None
    if not isinstance(x, np.ndarray):
        raise BadInput(f"{path} does not hold an array of shape (n, dim)")
    return x


def _array(x: Any, said: str) -> Stream:
    if len(x.shape) != 2 or not x.shape[1]:
        raise BadInput(f"an array of shape {tuple(x.shape)}; (n, dim) is right")
    n = len(x)

    def batches(rows: int, first: int) -> Iterator[np.ndarray]:
        return (x[at : at + rows] for at in range(first, n, rows))

    return Stream(n, int(x.shape[1]), lambda k: x[:: max(1, -(-n // k))], batches, said)


def _iterator(source: Iterable[Any]) -> Stream:
    """The sample is the beginning; it is kept until the batches have passed it."""
    parts = iter(source)
    first_part = next(parts, None)
    if first_part is None:
        raise BadInput("an iterator without a batch; one of shape (n, dim) or more is needed")
    begun: list[np.ndarray] = [_batch(first_part, None)]
    dim = begun[0].shape[1]

    def sample(k: int) -> np.ndarray:
        while sum(map(len, begun)) < k and (part := next(parts, None)) is not None:
            begun.append(_batch(part, dim))
        return np.concatenate(begun)[:k]

    def batches(rows: int, first: int) -> Iterator[np.ndarray]:
        held: list[np.ndarray] = []
        skip = first
        while begun or (part := next(parts, None)) is not None:
            held.append(begun.pop(0) if begun else _batch(part, dim))
            whole = np.concatenate(held)
            drop = min(skip, len(whole))
            whole, skip = whole[drop:], skip - drop
            while len(whole) >= rows:
                yield whole[:rows]
                whole = whole[rows:]
            held = [whole]
        if held and len(held[0]):
            yield held[0]

    return Stream(None, dim, sample, batches, f"iterator of {dim}")


def _batch(part: Any, dim: int | None) -> np.ndarray:
    detach = getattr(part, "detach", None)
    rows = np.asarray(part if detach is None else detach().cpu().numpy())
    if rows.ndim != 2 or not rows.shape[1] or (dim is not None and rows.shape[1] != dim):
        raise BadInput(f"a batch of shape {rows.shape}; (n, {dim or 'dim'}) is right")
    return rows


def _parquet(path: Path, column: str | None) -> Stream:
    try:
        from pyarrow import parquet
    except ImportError:
        raise BadConfig(
            f"{path} is Parquet, and pyarrow is not here; pip install 'laconic[parquet]' brings it"
        ) from None
    file = parquet.ParquetFile(path)
    names = list(file.schema_arrow.names)
    if column is None and len(names) == 1:
        column = names[0]
    if column not in names:
        raise BadInput(f"column {column!r} of {path}; its columns are {', '.join(names)}")
    n = int(file.metadata.num_rows)
    groups = int(file.metadata.num_row_groups)
    if not n:
        raise BadInput(f"{path} has no rows")

    def read(rows: int, some: list[int] | None = None) -> Iterator[np.ndarray]:
        for batch in file.iter_batches(batch_size=rows, row_groups=some, columns=[column]):
            yield _of_column(batch.column(0), path)

    dim = next(read(1)).shape[1]

    def sample(k: int) -> np.ndarray:
        """Of groups of rows spread over the file, the same number of each."""
        n_groups = min(groups, max(1, -(-k * groups // n)), 64)
        picked = sorted({i * groups // n_groups for i in range(n_groups)})
        share = -(-k // len(picked))
        found = [next(read(share, [g])) for g in picked if file.metadata.row_group(g).num_rows]
        return np.concatenate(found)[:k]

    def batches(rows: int, first: int) -> Iterator[np.ndarray]:
        at, group = 0, 0  # whole groups that were passed are not read again
        while group < groups and at + file.metadata.row_group(group).num_rows <= first:
            at, group = at + file.metadata.row_group(group).num_rows, group + 1
        return _iterator(chain([np.empty((0, dim), np.float32)], read(rows, list(range(group, groups))))).batches(
            rows, first - at
        )

    return Stream(n, dim, sample, batches, f"{path.resolve()} {path.stat().st_size} {column}")


def _of_column(column: Any, path: Path) -> np.ndarray:
    """(n, dim) of a column of lists of numbers, all of one length."""
    if column.null_count:
        raise BadInput(f"{path}: {column.null_count} rows without a vector")
    values = np.asarray(column.flatten().to_numpy(zero_copy_only=False))
    if values.dtype.kind not in "fiu" or not len(column) or not values.size or values.size % len(column):
        raise BadInput(
            f"{path}: {values.size} values of {values.dtype} in {len(column)} rows; vectors of one length are right"
        )
    sizes = column.value_lengths().to_numpy(zero_copy_only=False) if hasattr(column, "value_lengths") else None
    if sizes is not None and (sizes != values.size // len(column)).any():
        raise BadInput(f"{path}: vectors of {sizes.min()} to {sizes.max()} values; one length is right")
    return values.reshape(len(column), -1)
