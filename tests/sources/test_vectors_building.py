"""Sets too large for memory: one pass, a build that goes on, shards that are one index."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from laconic.core.errors import BadConfig, BadInput, ModelMismatch
from laconic.sources.vectors import building
from laconic.sources.vectors.streams import stream
from laconic.vectors import Index, build, map_shards, plan

X = (np.random.default_rng(0).standard_normal((1000, 16)) * np.linspace(2, 0.3, 16)).astype(np.float32)
Q = X[:8] + 0.01
SETTINGS: dict[str, Any] = {"recipe": "klt-levels", "bits": 4.0}


def same(a: Index, b: Index) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a.search(Q, 5), b.search(Q, 5), strict=True))


def test_every_source_gives_the_index_that_memory_gives(tmp_path: Path) -> None:
    whole = Index(16, **SETTINGS).train(X).add(X)
    np.save(tmp_path / "x.npy", X)
    sources = [X, tmp_path / "x.npy", iter([X[:10], X[10:700], X[700:]]), (X[i : i + 13] for i in range(0, 1000, 13))]
    for i, source in enumerate(sources):
        index = build(source, tmp_path / f"i{i}", batch=300, **SETTINGS)
        assert len(index) == 1000 and index._ids is None and same(index, whole)
        assert not (tmp_path / f"i{i}.parts").exists()
    for bad in (np.zeros(3), iter([]), iter([X, X[:, :3]]), 5, tmp_path / "x.npy.parts"):
        with pytest.raises((BadInput, OSError)):
            build(bad, tmp_path / "bad", **SETTINGS)


@pytest.mark.parametrize("lists", [0, 5])
def test_a_build_that_was_stopped_goes_on(tmp_path: Path, lists: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {**SETTINGS, "lists": lists, "batch": 128}
    wanted = build(X, tmp_path / "a", **given)

    def stop(done: int, total: int, what: str) -> None:
        if "coded" in what and done >= 384:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(X, tmp_path / "b", progress=stop, **given)
    assert len(list((tmp_path / "b.parts").glob("shard-*"))) == 3 and not (tmp_path / "b").exists()
    with pytest.raises(BadInput, match="another source or settings"):
        build(X, tmp_path / "b", resume=True, **{**given, "seed": 1})
    coded: list[int] = []
    monkeypatch.setattr(Index, "train", None)  # learned already
    index = build(X, tmp_path / "b", resume=True, progress=lambda done, total, what: coded.append(done), **given)
    assert coded == [512, 640, 768, 896, 1000] and same(index, wanted)


def test_a_folder_that_is_no_builds_stays(tmp_path: Path) -> None:
    (tmp_path / "x.parts").mkdir()
    (tmp_path / "x.parts" / "mine").write_text("mine")
    with pytest.raises(BadInput, match="no build's"):
        build(X, tmp_path / "x", **SETTINGS)
    assert (tmp_path / "x.parts" / "mine").read_text() == "mine"


def test_iterators_keep_their_beginning() -> None:
    s = stream(iter([X[:10], X[10:50], X[50:100]]))
    np.testing.assert_array_equal(s.sample(30), X[:30])
    got = list(s.batches(16, 20))
    assert [len(g) for g in got] == [16, 16, 16, 16, 16]
    np.testing.assert_array_equal(np.concatenate(got), X[20:100])


def test_merging_many_shards_at_once() -> None:
    base = Index(16, **SETTINGS).train(X)
    shards = [base.empty().add(X[i : i + 250], np.arange(i, i + 250)) for i in range(0, 1000, 250)]
    assert same(base.empty().merge(*shards), base.empty().add(X)) and len(base) == 0
    with pytest.raises(BadInput, match="id 0 is in both"):
        base.empty().merge(shards[0], shards[0])
    with pytest.raises(ModelMismatch):
        base.merge(Index(16, **SETTINGS).train(X[:500]))


def test_a_plan_says_what_it_would_take() -> None:
    said = plan(X, lists=3, **SETTINGS)
    index = Index(16, **SETTINGS).train(X).add(X)
    assert said["vectors"] == 1000 and 0.8 < said["index_bytes"] / index.nbytes < 1.2
    assert said["learning_s"] >= 0 and said["memory_bytes"] > X.nbytes
    assert plan(iter([X]), **SETTINGS)["vectors"] is None


# --- Parquet and Ray, which need not be here --------------------------------------------------------------------------


class _Column:
    """As much of a pyarrow list array as is read."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows, self.null_count = rows, sum(r is None for r in rows)

    def __len__(self) -> int:
        return len(self.rows)

    def flatten(self) -> Any:
        return SimpleNamespace(to_numpy=lambda zero_copy_only: np.concatenate([r for r in self.rows if r is not None]))

    def value_lengths(self) -> Any:
        return SimpleNamespace(to_numpy=lambda zero_copy_only: np.array([len(r) for r in self.rows]))


class _File:
    """As much of `pyarrow.parquet.ParquetFile` as is read, in groups of 150 rows; `rows` is what it holds."""

    rows: list[Any] = list(X)

    def __init__(self, path: Path) -> None:
        self.schema_arrow = SimpleNamespace(names=["id", "v"])
        groups = -(-len(self.rows) // 150)
        self.metadata = SimpleNamespace(num_rows=len(self.rows), num_row_groups=groups, row_group=lambda g: SimpleNamespace(
            num_rows=len(self.rows[150 * g : 150 * g + 150])))  # fmt: skip

    def iter_batches(self, batch_size: int, row_groups: list[int] | None, columns: list[str]) -> Iterator[Any]:
        assert columns == ["v"]
        for g in range(self.metadata.num_row_groups) if row_groups is None else row_groups:
            rows = self.rows[150 * g : 150 * g + 150]
            for at in range(0, len(rows), batch_size):
                yield SimpleNamespace(column=lambda i, at=at, rows=rows: _Column(rows[at : at + batch_size]))


@pytest.fixture
def pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("pyarrow")
    module.parquet = SimpleNamespace(ParquetFile=_File)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyarrow", module)


def test_parquet(tmp_path: Path, pyarrow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"")
    s = stream(path, "v")
    assert (s.n, s.dim, len(s.sample(200))) == (1000, 16, 200)
    assert len(np.unique(s.sample(200)[:, 0] // 1e-9)) > 190
    for first in (0, 149, 150, 700):
        np.testing.assert_array_equal(np.concatenate(list(s.batches(64, first))), X[first:])
    assert len(build(path, tmp_path / "i", column="v", batch=200, **SETTINGS)) == 1000
    with pytest.raises(BadInput, match="its columns are id, v"):
        stream(path)
    for bad, match in (([None, *X], "without a vector"), ([X[0], X[1][:3], X[2]], "one length"), ([], "no rows")):
        monkeypatch.setattr(_File, "rows", bad)
        with pytest.raises(BadInput, match=match):
            list(stream(path, "v").batches(10, 0))


def test_parquet_as_it_is(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    column = pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), 16)
    parquet.write_table(pa.table({"id": np.arange(1000), "v": column}), tmp_path / "x.parquet", row_group_size=150)
    s = stream(tmp_path / "x.parquet", "v")
    for first in (0, 151, 700):
        np.testing.assert_array_equal(np.concatenate(list(s.batches(64, first))), X[first:])


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(BadConfig, match=r"laconic\[parquet\]"):
        stream(tmp_path / "x.parquet")


class _Dataset:
    """As much of a Ray dataset as is asked of it."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def map_batches(
        self, fn: Any, *, batch_size: int, batch_format: str, fn_kwargs: dict[str, Any], **options: Any
    ) -> _Dataset:
        assert batch_format == "numpy"
        out = []
        for at in range(0, len(self.rows), batch_size):
            some = self.rows[at : at + batch_size]
            found = fn({k: np.array([r[k] for r in some]) for k in some[0]}, **fn_kwargs)
            out += [{k: v[i] for k, v in found.items()} for i in range(len(found["n"]))]
        return _Dataset(out)

    def take_all(self) -> list[dict[str, Any]]:
        return self.rows


def rows() -> list[dict[str, Any]]:
    return [{"id": 3 * i, "vector": x} for i, x in enumerate(X)]


def test_encoding_is_mapped_over_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = Index(16, **SETTINGS, lists=3).train(X)
    whole = trained.empty().add(X, 3 * np.arange(1000))
    index = map_shards(_Dataset(rows()), trained, tmp_path, batch=130)
    assert len(trained) == 0 and len(index) == 1000 and same(index, whole)
    monkeypatch.setattr(Index, "add", None)  # coded already
    assert same(map_shards(_Dataset(rows()), trained, tmp_path, batch=130), whole)


def test_encoding_is_mapped_by_ray(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    trained = Index(16, **SETTINGS).train(X)
    found = map_shards(ray.data.from_items(rows()), trained, tmp_path, batch=250)
    assert same(found, trained.empty().add(X, 3 * np.arange(1000)))


def test_batch_size_is_that_of_shards() -> None:
    assert building.BATCH * 4096 * 4 <= 1 << 30  # the widest vectors: a gigabyte a batch at most
