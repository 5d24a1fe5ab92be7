"""The index: what it ranks is what it reconstructs, and what it must survive."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import laconic
from laconic.core import registry
from laconic.core.errors import BadConfig, BadInput, CodecError, CorruptStream, ModelMismatch, NotFitted
from laconic.sources.vectors.ranking import costs, directions
from laconic.vectors import Index

RECIPES = registry.recipes("vectors")
DIM = 16


def vectors(n: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    """Clustered, of unequal variance."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((8, dim)) * 2
    return ((centres[rng.integers(0, 8, n)] + rng.standard_normal((n, dim))) * np.linspace(2, 0.3, dim)).astype(
        np.float32
    )


def made(recipe: str = "klt-levels", n: int = 300, **settings: object) -> Index:
    given: dict = {"bits": 3.0, "recipe": recipe, **settings}
    return Index(DIM, **given).train(vectors(400, 5)).add(vectors(n, 1))


def reheaded(path: Path, old: bytes, new: bytes, version: int) -> None:
    """Gives a file another version, and a head in which some bytes are others."""
    from laconic.sources.vectors import saving

    data, at = path.read_bytes(), len(saving.MAGIC)
    size = int.from_bytes(data[at + 1 : at + 9], "little")
    text = data[at + 9 : at + 9 + size]
    assert old in text
    text = text.replace(old, new)
    head = saving.MAGIC + bytes([version]) + len(text).to_bytes(8, "little") + text + saving.checksum(text)
    path.write_bytes(head + data[at + 13 + size :])


def brute(index: Index, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    ids = index.ids()
    q = directions(queries) if index.metric == "cosine" else queries
    cost = costs(q, index.reconstruct(ids), index.metric)
    order = np.argsort(cost, 1, kind="stable")[:, :k]
    found = np.take_along_axis(cost, order, 1)
    return (found if index.metric == "l2" else -found), ids[order]


@pytest.mark.parametrize("recipe", RECIPES)
def test_search_is_brute_force_over_reconstructions(recipe: str) -> None:
    queries = vectors(7, 2)
    for metric in ("l2", "ip", "cosine"):
        index = made(recipe, 150, metric=metric)
        shown, ids = index.search(queries, 10)
        wanted, names = brute(index, queries, 10)
        assert shown.dtype == np.float32 and ids.dtype == np.int64 and ids.shape == shown.shape == (7, 10)
        np.testing.assert_allclose(shown, wanted, rtol=1e-4, atol=1e-3)
        same = ids == names  # where it is not, two are equally far but for rounding
        assert np.isclose(shown[~same], wanted[~same], rtol=1e-4, atol=1e-3).all()


@pytest.mark.parametrize("recipe", RECIPES)
def test_lists_and_masks_of_every_recipe(recipe: str) -> None:
    """Every vector that may be found is in the lists that are read: what is near among the reconstructions is found."""
    for metric, seed in (("l2", 2), ("ip", 3)):
        index, q = made(recipe, 120, metric=metric, lists=3), vectors(4, seed)
        index.remove([2, 3])
        allowed = np.arange(1, 120, 2)
        shown, ids = index.search(q, 6, probe=3, allowed=allowed)
        assert np.isin(ids, allowed).all() and not (ids == 3).any()
        every, names = brute(index, q, len(index))
        wanted = np.stack([row[np.isin(n, allowed)][:6] for row, n in zip(every, names, strict=True)])
        np.testing.assert_allclose(shown, wanted, rtol=1e-4, atol=1e-3)


def test_every_list_read_is_every_vector_read() -> None:
    index, queries = made(lists=6), vectors(5, 2)
    shown, _ = index.search(queries, 9, probe=6)
    np.testing.assert_allclose(shown, brute(index, queries, 9)[0], rtol=1e-4, atol=1e-3)
    few, ids = index.search(queries, 9, probe=1)
    assert (few >= shown - 1e-3).all() and (ids >= -1).all()
    with pytest.raises(BadConfig, match="probe"):
        index.search(queries, 3, probe=0)


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize("lists", [0, 6])
@pytest.mark.parametrize("coarse", [0, 2])
def test_a_short_list_finds_what_is_near(metric: str, lists: int, coarse: int) -> None:
    index, q = made("klt-levels", 900, metric=metric, lists=lists, coarse=coarse), vectors(20, 2)
    probe = {"probe": 4} if lists else {}
    exact, ids = index.search(q, 5, shortlist=0, **probe)
    for shortlist in (10**12, 60):
        found, names = index.search(q, 5, shortlist=shortlist, **probe)
        hits = [len(set(a) & set(b)) for a, b in zip(ids.tolist(), names.tolist(), strict=True)]
        assert np.mean(hits) > (4.5 if coarse else 4.9) and (shortlist == 60 or (names == ids).all())
        np.testing.assert_allclose(found[names == ids], exact[names == ids], rtol=1e-5, atol=1e-5)
    with pytest.raises(BadConfig, match="shortlist=-1"):
        index.search(q, 5, shortlist=-1)


def test_a_coarse_index_has_a_short_list_by_itself(tmp_path: Path) -> None:
    """And is what it was after a file, a merge, a removal and more vectors; what cannot be coarse says so."""
    index, q = made("klt-levels", 900, lists=6, coarse=2), vectors(20, 2)
    few = index.search(q, 5, probe=4)
    for a, b in zip(few, index.search(q, 5, probe=4, shortlist=32), strict=True):
        np.testing.assert_array_equal(a, b)
    before = index.nbytes
    index.save(tmp_path / "x")
    again = Index.load(tmp_path / "x")
    assert again.coarse == again.report()["coarse"] == 2 and 0 <= before - again.nbytes - 2 * 900 < 2 * 64 * 6
    for a, b in zip(few, again.search(q, 5, probe=4), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(again.reconstruct(np.arange(9)), index.reconstruct(np.arange(9)))
    again.remove(few[1][:, 0])
    assert not np.isin(again.search(q, 5, probe=4)[1], few[1][:, 0]).any()
    again.add(q)
    assert (again.search(q, 1, probe=6, shortlist=200)[1][:, 0] >= 900).mean() > 0.9
    with pytest.raises(ModelMismatch):
        index.empty().merge(made("klt-levels", 900, lists=6))
    with pytest.raises(BadConfig, match="no fast scan"):
        made("klt-trellis", 900, coarse=2)
    for coarse in (8, -1, True, 1.5):
        with pytest.raises(BadConfig, match=f"coarse={coarse}"):
            Index(8, coarse=coarse)
    with pytest.raises(BadConfig, match="nothing to estimate by"):
        made("pq", 900, coarse=7)


@pytest.mark.parametrize("index_bits", [4, 6])
def test_product_codes_are_coarse_by_halves_of_their_points(index_bits: int) -> None:
    index, q = made("pq", 900, coarse=1, bits=2.0, index_bits=index_bits), vectors(20, 2)
    few, every = (index.search(q, 5, shortlist=n)[1].tolist() for n in (200, 0))
    assert np.mean([len(set(a) & set(b)) for a, b in zip(few, every, strict=True)]) > 4.5


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize("coarse", [0, 2])
def test_short_lists_of_what_lies_far_from_zero(metric: str, coarse: int) -> None:
    """A mean that is common to all vectors takes nothing from what their estimates tell; of directions it leaves little."""
    far = 1000 if metric == "l2" else 3
    x, q = vectors(2000, 1, 32) + np.float32(far), vectors(20, 2, 32) + np.float32(far)
    index = Index(32, metric, "klt-levels", 4.0, 8, coarse=coarse).train(x).add(x)
    exact, few = (index.search(q, 10, probe=8, shortlist=n)[1].tolist() for n in (0, 40))
    assert np.mean([len(set(a) & set(b)) for a, b in zip(exact, few, strict=True)]) > 8.5


def test_auto_takes_a_recipe_that_can_be_coarse() -> None:
    x = vectors(400, 5)
    assert Index(DIM, coarse=2).train(x).recipe in ("klt-levels", "scalar")


@pytest.mark.parametrize("coarse", ["9", "-1", "true", '"2"', "0"])
def test_a_head_with_another_coarse_is_refused(coarse: str, tmp_path: Path) -> None:
    """In one way or another: of less columns there are as many bytes, but for blocks that are not full."""
    index = made("klt-levels", 300, coarse=2)
    index.save(tmp_path / "x")
    reheaded(tmp_path / "x", b'"coarse":2', f'"coarse":{coarse}'.encode(), 4)
    with pytest.raises(CorruptStream):
        Index.load(tmp_path / "x").search(vectors(2), 3)


def test_a_block_beyond_what_kernels_count_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from laconic.sources.vectors import scanning

    monkeypatch.setattr(scanning, "_MOST_BYTES", 1000)
    with pytest.raises(CorruptStream, match="at most 1,000"):
        made("klt-levels", 900).search(vectors(1), 3)


def test_rescoring_has_as_many_candidates_as_it_asks_for(tmp_path: Path) -> None:
    x, q = vectors(900), vectors(20, 2)
    index = Index(x.shape[1], recipe="klt-levels", bits=3, coarse=2, originals=tmp_path / "o").train(x).add(x)
    found, ids = index.search(q, 5, rescore=400)
    true = np.square(q[:, None].astype(np.float64) - x[None]).sum(2)
    np.testing.assert_array_equal(ids, np.argsort(true, 1)[:, :5])
    np.testing.assert_allclose(found, np.sort(true, 1)[:, :5], rtol=1e-4)


def test_threads_change_nothing() -> None:
    a, b = made(lists=6), made(lists=6, threads=3)
    q = vectors(5, 2)
    for x, y in zip(a.search(q, 5), b.search(q, 5), strict=True):
        np.testing.assert_array_equal(x, y)


def test_adding_in_many_calls_with_ids() -> None:
    x, ids = vectors(90, 1), np.arange(90) * 7 + 3
    index = (
        Index(
            DIM,
            recipe="turboquant",
            bits=4,
        )
        .add(x[:40], ids[:40])
        .add(x[40:], ids[40:])
    )
    assert len(index) == 90 and (index.search(x, 1)[1][:, 0] == ids).mean() > 0.9
    with pytest.raises(BadInput, match="id 3 is in the index"):
        index.add(x[:1], [3])
    with pytest.raises(BadInput, match="given 2 times"):
        index.add(x[:2], [5, 5])


def test_removing() -> None:
    index, q = made(), vectors(4, 2)
    first = index.search(q, 1)[1][:, 0]
    assert index.remove(first) == len(np.unique(first)) and index.remove(first) == 0
    assert not np.isin(index.search(q, 20)[1], first).any()
    with pytest.raises(BadInput, match="not in the index"):
        index.reconstruct(first[:1])
    assert index.remove(index.ids()) and len(index) == 0
    shown, ids = index.search(q, 3)
    assert (ids == -1).all() and np.isinf(shown).all()


def test_k_beyond_the_set_and_masks() -> None:
    index, q = made(n=5), vectors(3, 2)
    shown, ids = index.search(q, 8)
    assert (ids[:, 5:] == -1).all() and np.isinf(shown[:, 5:]).all() and (ids[:, :5] >= 0).all()
    assert set(index.search(q, 8, allowed=[1, 4])[1].ravel()) == {-1, 1, 4}
    inner = made(n=2, metric="ip").search(q, 3)[0]
    assert (inner[:, 2] == -np.inf).all()


def test_rescoring_with_originals(tmp_path: Path) -> None:
    x, q = vectors(300, 1), vectors(20, 2)
    index = Index(DIM, recipe="turboquant", bits=2, originals=tmp_path / "x.f32").add(x[:100]).add(x[100:])
    exact = np.argsort(costs(q, x, "l2"), 1, kind="stable")[:, :5]
    shown, ids = index.search(q, 5, rescore=300)
    np.testing.assert_array_equal(ids, exact)
    np.testing.assert_allclose(shown, np.take_along_axis(costs(q, x, "l2"), exact, 1), rtol=1e-4)
    (tmp_path / "x.f32").write_bytes(b"123")
    with pytest.raises(BadInput, match="originals of 300"):
        index.search(q, 5, rescore=9)
    with pytest.raises(BadConfig, match="originals"):
        made().search(q, 5, rescore=9)


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_originals_that_cannot_win_are_not_read(metric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from laconic.sources.vectors import index as module

    x, q = vectors(900, 1), vectors(15, 2)
    given = {"originals": tmp_path / "x.f32", "lists": 3}
    index = Index(DIM, metric, "klt-levels", 6.0, **given).train(vectors(400, 5)).add(x[:300]).add(x[300:])
    index.remove([5])
    index.save(tmp_path / "x")
    rows, asked = (directions(x), directions(q)) if metric == "cosine" else (x, q)
    cost = costs(asked, rows, metric)
    cost[:, 5] = np.inf
    exact = np.argsort(cost, 1, kind="stable")[:, :5]
    read: list[int] = []
    monkeypatch.setattr(module, "costs", lambda q, v, m, *p: (read.append(len(v)), costs(q, v, m, *p))[1])
    for one in (index, Index.load(tmp_path / "x", originals=tmp_path / "x.f32")):
        read.clear()
        shown, ids = one.search(q, 5, probe=3, rescore=899)
        np.testing.assert_array_equal(ids, exact)
        np.testing.assert_allclose(np.abs(shown), np.abs(np.take_along_axis(cost, exact, 1)), rtol=1e-4)
        assert sum(read) - 3 < 15 * 899 / 5
    index._errors = None  # as files of versions 1 and 2 have it: all are read
    read.clear()
    np.testing.assert_array_equal(index.search(q, 5, probe=3, rescore=899)[1], exact)
    assert sum(read) - 3 == 15 * 899


def test_merging_shards() -> None:
    base = Index(DIM, recipe="saq", bits=3.0).train(vectors(400, 5))
    import copy

    parts, x = [copy.deepcopy(base), copy.deepcopy(base)], vectors(200, 1)
    parts[0].add(x[:120], np.arange(120))
    parts[1].add(x[120:], np.arange(120, 200))
    parts[1].remove([150])
    whole = copy.deepcopy(base).add(x)
    whole.remove([150])
    q = vectors(6, 2)
    merged = parts[0].merge(parts[1])
    assert len(merged) == 199
    np.testing.assert_array_equal(merged.search(q, 4)[1], whole.search(q, 4)[1])
    with pytest.raises(BadInput, match="is in both"):
        merged.merge(parts[1])
    with pytest.raises(ModelMismatch):
        merged.merge(made())


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_rows_that_are_not_finite_are_named(value: float) -> None:
    x = vectors(9, 1).astype(np.float64)
    x[6, 3] = value
    for call in (made().add, made().train, lambda r: made().search(r, 1)):
        with pytest.raises(BadInput, match="row 6"):
            call(x)


def test_bad_input_is_named() -> None:
    for bad in (np.zeros((3, DIM + 1)), np.zeros(DIM), np.zeros((2, DIM), complex), np.array([["a"] * DIM])):
        with pytest.raises(BadInput):
            made().add(bad)
    with pytest.raises(NotFitted):
        Index(DIM, recipe="klt-levels").add(vectors(3))
    with pytest.raises(BadInput, match="16 or more are needed"):
        Index(DIM, recipe="klt-levels").train(vectors(5))
    with pytest.raises(BadInput, match="400 or more are needed"):
        Index(DIM, recipe="klt-levels", lists=100).train(vectors(50))
    with pytest.raises(BadConfig, match="cosine"):
        Index(DIM, metric="cosin")
    with pytest.raises(BadConfig, match="vectors"):
        Index(DIM, recipe="gptq")
    with pytest.raises(BadConfig):
        Index(DIM, recipe="turboquant", bits=2.5)


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_zeros_and_duplicates(metric: str) -> None:
    x = np.concatenate([np.zeros((3, DIM), np.float32), np.repeat(vectors(1, 3), 5, 0), vectors(60, 4)])
    index = Index(DIM, metric, "klt-levels", 4.0).train(vectors(200, 5)).add(x)
    shown, ids = index.search(x[:9], 6)
    assert np.isfinite(shown).all() and (ids >= 0).all()
    assert set(ids[4, :5]) == {3, 4, 5, 6, 7}


def test_tensors_and_integers() -> None:
    import torch

    x = np.rint(vectors(300, 1) * 10)
    a = Index(DIM, recipe="saq").train(x).add(x)
    b = Index(DIM, recipe="saq").train(torch.from_numpy(x)).add(torch.from_numpy(x.astype(np.int32)))
    np.testing.assert_array_equal(a.search(x[:5], 3)[1], b.search(torch.from_numpy(x[:5]), 3)[1])


def test_codec_view() -> None:
    index, x = made(), vectors(33, 7)
    assert np.square(index.decode(index.encode(x)) - x).mean() < 0.2 * x.var()
    for damaged in (index.encode(x)[:-3], b"123", index.encode(x) + b"1"):
        with pytest.raises(CodecError):
            index.decode(damaged)


@pytest.mark.parametrize("settings", [{}, {"lists": 5}, {"metric": "cosine"}])
@pytest.mark.parametrize("mmap", [True, False])
def test_files_there_and_back(tmp_path: Path, settings: dict, mmap: bool) -> None:
    index, q = made(**settings), vectors(6, 2)
    index.remove([3, 4])
    index.save(tmp_path / "x.lacv")
    back = Index.load(tmp_path / "x.lacv", mmap=mmap)
    for a, b in zip(index.search(q, 7), back.search(q, 7), strict=True):
        np.testing.assert_array_equal(a, b)
    assert back.nbytes == index.nbytes and len(back) == 298
    back.add(vectors(10, 9))
    assert len(back) == 308
    assert [p.name for p in tmp_path.iterdir()] == ["x.lacv"]


def test_damaged_files(tmp_path: Path) -> None:
    index, q, path = made(n=70, lists=3), vectors(3, 2), tmp_path / "x.lacv"
    index.remove([5])
    index.save(path)
    whole = path.read_bytes()
    wanted = index.search(q, 5, probe=3)
    places = np.random.default_rng(0).integers(0, len(whole), 120)
    damaged = [whole[:n] for n in (0, 5, 20, len(whole) // 2, len(whole) - 1)] + [whole + b"\0"]
    damaged += [whole[:p] + bytes([whole[p] ^ (1 << p % 8)]) + whole[p + 1 :] for p in places.tolist()]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(CorruptStream):
            Index.load(path, mmap=False).search(q, 5, probe=3)
    path.write_bytes(whole)
    np.testing.assert_array_equal(Index.load(path).search(q, 5, probe=3)[1], wanted[1])


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, path = made(), tmp_path / "x.lacv"
    index.save(path)
    before = path.read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        index.add(vectors(9, 8)).save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_readers_keep_the_old_file_while_another_is_written(tmp_path: Path) -> None:
    index, q, path = made("turboquant"), vectors(3, 2), tmp_path / "x.lacv"
    index.save(path)
    old = Index.load(path)
    wanted = index.search(q, 5)[1]
    index.remove(np.unique(wanted))
    index.save(path)
    np.testing.assert_array_equal(old.search(q, 5)[1], wanted)
    assert not np.isin(Index.load(path).search(q, 5)[1], wanted).any()


def test_sizes_are_those_of_the_bytes(tmp_path: Path) -> None:
    index = made("klt-levels", 4096)
    assert 3.0 <= index.bits_per_dim < 3.1
    said = index.report()
    assert said["code_bytes"] == index.code_bytes < said["nbytes"] == index.nbytes
    index.save(tmp_path / "x")
    assert (tmp_path / "x").stat().st_size < index.nbytes + 2000


def test_auto_measures() -> None:
    index = Index(DIM, bits=3.0).train(vectors(600, 5)).add(vectors(100, 1))
    assert index.recipe in RECIPES
    found = {t.recipe: t for t in laconic.vectors.trials(vectors(600, 5), 3.0, 0)}
    assert found["klt-levels"].error < found["turboquant"].error  # unequal variances


_WRITER = """
import os, sys, time, numpy as np
from laconic.vectors import Index
path, stuck = sys.argv[1], sys.argv[2] == "stuck"
def wait(fd):
    print("in the middle", flush=True)
    time.sleep(600)
if stuck:
    os.fsync = wait
index = Index.load(path, mmap=False)
for seed in range(2):
    index.add(np.random.default_rng(seed).standard_normal((2000, index.dim)).astype(np.float32))
    index.save(path)
    print("saved", flush=True)
"""


def _writer(path: Path, how: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", _WRITER, str(path), how], stdout=subprocess.PIPE, text=True)


def test_a_process_that_is_killed_while_it_saves_leaves_the_old_file(tmp_path: Path) -> None:
    index, path, q = made("klt-levels", 5000), tmp_path / "x.lacv", vectors(3, 2)
    index.save(path)
    with _writer(path, "stuck") as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "in the middle\n"
        writer.kill()
    back = Index.load(path)
    assert len(back) == 5000
    np.testing.assert_array_equal(back.search(q, 5)[1], index.search(q, 5)[1])


def test_two_readers_of_one_file_while_a_process_writes_anew(tmp_path: Path) -> None:
    index, path, q = made("klt-levels", 5000), tmp_path / "x.lacv", vectors(3, 2)
    index.save(path)
    readers = [Index.load(path), Index.load(path)]
    wanted = index.search(q, 5)
    with _writer(path, "twice") as writer:
        assert writer.stdout is not None
        while writer.stdout.readline() == "saved\n":
            for reader in readers:
                np.testing.assert_array_equal(reader.search(q, 5)[1], wanted[1])
    assert len(Index.load(path)) == 9000


def test_files_of_version_1_open_and_find_the_same(tmp_path: Path) -> None:
    """The head of version 1 has no layout, and blocks are as the codec gave them."""
    from laconic.sources.vectors.blocks import relaid

    index, q = made(), vectors(6, 2)
    wanted = index.search(q, 5)
    scan = index._scan()
    assert scan is not None
    index._blocks = [
        b._replace(data=relaid(index._ready(), b.data, len(b.numbers), scan, back=True)) for b in index._blocks
    ]
    index._scanner = (None,)
    index.save(tmp_path / "x")
    reheaded(tmp_path / "x", b'"layout":"codec",', b"", 1)
    found = Index.load(tmp_path / "x").search(q, 5)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("lists", [0, 3])
def test_many_queries_of_coarse_codes_are_decoded_once(lists: int) -> None:
    index, q = made("pq", bits=4.0, lists=lists), vectors(100, 2)
    scan = index._scan()
    assert scan is not None and scan.pays(47) and not scan.pays(48)
    probe = {"probe": 3} if lists else {}
    many = index.search(q, 5, **probe)[0]
    few = np.concatenate([index.search(part, 5, **probe)[0] for part in np.split(q, 4)])
    np.testing.assert_allclose(many, few, rtol=1e-3, atol=1e-3)


def test_files_of_version_2_open_and_find_the_same(tmp_path: Path) -> None:
    """Version 2 held product codes of 8 bits as the codec gave them, and no arrays but those it knew."""
    from laconic.sources.vectors import saving
    from laconic.sources.vectors.blocks import relaid

    index, q = made("pq", lists=3, bits=4.0), vectors(6, 2)
    wanted, scan = index.search(q, 5, probe=3), index._scan()
    assert scan is not None and scan.where.bits[0] > 4
    index._blocks = [
        b._replace(data=relaid(index._ready(), b.data, len(b.numbers), scan, back=True)) for b in index._blocks
    ]
    index._scanner = (None,)
    index.save(tmp_path / "x")
    data = bytearray((tmp_path / "x").read_bytes())
    data[len(saving.MAGIC)] = 2
    (tmp_path / "x").write_bytes(data)
    for a, b in zip(Index.load(tmp_path / "x").search(q, 5, probe=3), wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    data[len(saving.MAGIC)] = 5
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(CorruptStream, match="versions 1 to 4"):
        Index.load(tmp_path / "x")


@pytest.mark.parametrize("recipe", ["pq", "klt-levels"])
def test_files_of_version_3_open_and_find_the_same(recipe: str, tmp_path: Path) -> None:
    """In version 3 fine bits were planes of 64 vectors, and there were no coarse columns."""
    from laconic.core.wire import Reader, read_sections, write_sections
    from laconic.kernels.columns import unpack_columns
    from laconic.sources.vectors import saving

    index, q = made(recipe, lists=3, bits=4.0), vectors(6, 2)
    wanted, scan, stage = index.search(q, 5, probe=3), index._scan(), index.stage
    assert scan is not None and stage is not None and scan.where.n_fine
    low, old = scan.where.low, []
    for block in index._blocks:
        side, n = read_sections(stage, Reader(block.data)), len(block.numbers)
        codes = unpack_columns(np.frombuffer(side["payload"], np.uint8), scan.where, n)
        planes = b"".join(
            np.packbits(codes[at : at + 64, j] >> b & 1, bitorder="little").tobytes().ljust(8, b"\0")
            for at in range(0, n, 64)
            for j in range(codes.shape[1])
            for b in range(low[j])
        )
        side["payload"] = side["payload"][: scan.where.column_bytes(n)] + planes
        old.append(block._replace(data=write_sections(stage, side)))
    index._blocks = old
    index.save(tmp_path / "x")
    reheaded(tmp_path / "x", b'"coarse":0,', b"", 3)
    found = Index.load(tmp_path / "x")
    for a, b in zip(found.search(q, 5, probe=3), wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    found.save(tmp_path / "y")
    assert (tmp_path / "y").read_bytes()[len(saving.MAGIC)] == 4
    np.testing.assert_array_equal(Index.load(tmp_path / "y").search(q, 5, probe=3)[1], wanted[1])


def test_filtered_search_in_lists_and_product_codes() -> None:
    q = vectors(8, 2)
    for index in (
        made(lists=5),
        made("pq", 600, bits=2.0, index_bits=4),
        made(lists=4, metric="cosine"),
        made("pq", lists=3, index_bits=4),
        made("pq", lists=3),
        made("opq", metric="cosine", bits=2.0),
        made("scalar", lists=3, metric="ip", bits=6),
    ):
        allowed = np.arange(0, len(index), 3)
        shown, ids = index.search(q, 7, probe=5 if index.lists else None, allowed=allowed)
        assert np.isin(ids, allowed).all()
        every, names = brute(index, q, len(index))
        mask = np.isin(names, allowed)
        wanted = np.stack([row[keep][:7] for row, keep in zip(every, mask, strict=True)])
        np.testing.assert_allclose(shown, wanted, rtol=1e-4, atol=1e-3)
