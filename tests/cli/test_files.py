"""Files there and back, budgets, and what happens when something goes wrong on the way."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import laconic
from laconic.sources import formats

RNG = np.random.default_rng(0)


def weights(path: Path) -> Path:
    g = torch.Generator().manual_seed(0)
    tensors = {
        "w1": torch.randn(96, 256, generator=g).to(torch.bfloat16),
        "w2": torch.randn(256, 128, generator=g),
        "norm": torch.ones(256, dtype=torch.bfloat16),
        "ids": torch.arange(300),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def test_safetensors(tmp_path: Path) -> None:
    source = weights(tmp_path / "m.safetensors")
    report = laconic.compress(source, bits=4)
    packed = tmp_path / "m.safetensors.lac"
    assert report.out_bytes == packed.stat().st_size < source.stat().st_size / 2.5
    assert source.exists()
    back = tmp_path / "back.safetensors"
    laconic.decompress(packed, back)
    old, new = load_file(source), load_file(back)
    assert old.keys() == new.keys()
    with safe_open(back, framework="pt") as f:
        assert f.metadata() == {"format": "pt"}
    for name, a in old.items():
        b = new[name]
        assert a.shape == b.shape and a.dtype == b.dtype
        if name[0] == "w":
            row = next(r for r in report.rows if r.name == name)
            error = float((a.double() - b.double()).square().sum() / a.double().square().sum())
            assert 0 < error < 0.02
            assert row.error == pytest.approx(error, rel=1e-4)
        else:
            assert torch.equal(a, b)


@pytest.mark.parametrize("bits", [2.0, 2.5, 4.0])
def test_bits_are_met_in_real_bytes(tmp_path: Path, bits: float) -> None:
    np.save(tmp_path / "x.npy", RNG.standard_normal((512, 256), dtype=np.float32))
    report = laconic.compress(tmp_path / "x.npy", bits=bits)
    (row,) = report.rows
    assert row.bits_per_element <= 1.01 * bits


@pytest.mark.parametrize("n_bytes", [6_000, 20_000])
def test_max_bytes_is_kept(tmp_path: Path, n_bytes: int) -> None:
    np.save(tmp_path / "x.npy", RNG.standard_normal((256, 256), dtype=np.float32))
    laconic.compress(tmp_path / "x.npy", max_bytes=n_bytes)
    assert 0.9 * n_bytes < (tmp_path / "x.npy.lac").stat().st_size <= n_bytes


def test_max_bytes_that_cannot_be_met_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "r.bin").write_bytes(RNG.bytes(5000))
    with pytest.raises(laconic.BadConfig, match="cannot be met"):
        laconic.compress(tmp_path / "r.bin", max_bytes=1000)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.bin"]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int16", "uint8", "bool", "int64"])
def test_numpy_dtypes(tmp_path: Path, dtype: str) -> None:
    x = (RNG.standard_normal((80, 96)) * 20).astype(dtype)
    np.save(tmp_path / "x.npy", np.asfortranarray(x))
    laconic.compress(tmp_path / "x.npy")
    laconic.decompress(tmp_path / "x.npy.lac", tmp_path / "y.npy")
    y = np.load(tmp_path / "y.npy")
    assert y.dtype == x.dtype and y.shape == x.shape
    if "float" not in dtype:
        np.testing.assert_array_equal(x, y)


def test_big_endian_and_foreign_dtypes_come_back(tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", np.arange(50, dtype=">i4"))
    np.save(tmp_path / "s.npy", np.array(["some", "words"]))
    for name in ("b.npy", "s.npy"):
        laconic.compress(tmp_path / name)
        laconic.decompress(tmp_path / f"{name}.lac", tmp_path / f"back-{name}")
        np.testing.assert_array_equal(np.load(tmp_path / name), np.load(tmp_path / f"back-{name}"))


def test_npz(tmp_path: Path) -> None:
    arrays = {"a": RNG.standard_normal((70, 64)).astype(np.float32), "b": np.arange(9), "c": np.float32(2.5)}
    np.savez(tmp_path / "x.npz", **arrays)
    laconic.compress(tmp_path / "x.npz")
    laconic.decompress(tmp_path / "x.npz.lac", tmp_path / "y.npz")
    back = np.load(tmp_path / "y.npz")
    assert set(back.files) == set(arrays)
    np.testing.assert_array_equal(back["b"], arrays["b"])
    assert np.square(back["a"] - arrays["a"]).mean() < 0.02


def test_values_that_are_not_finite_are_kept_whole(tmp_path: Path) -> None:
    x = RNG.standard_normal((80, 96)).astype(np.float32)
    x[3, 4], x[5, 6] = np.nan, np.inf
    np.save(tmp_path / "x.npy", x)
    report = laconic.compress(tmp_path / "x.npy")
    laconic.decompress(tmp_path / "x.npy.lac", tmp_path / "y.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), x)
    assert "NaN or Inf" in report.rows[0].note


def test_what_a_recipe_cannot_take_is_kept_whole_and_said(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", RNG.standard_normal((7, 5000)).astype(np.float32))
    report = laconic.compress(tmp_path / "x.npy", recipe="turboquant")
    laconic.decompress(tmp_path / "x.npy.lac", tmp_path / "y.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), np.load(tmp_path / "x.npy"))
    assert "5000 coordinates" in report.rows[0].note and report.rows[0].error == 0


def test_picture(tmp_path: Path) -> None:
    y, x = np.mgrid[:50, :70]
    pixels = (np.stack([3 * x, 4 * y, x + y], -1) + RNG.integers(0, 12, (50, 70, 3))).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    report = laconic.compress(tmp_path / "p.png", bits=2.0)
    laconic.decompress(tmp_path / "p.png.lac", tmp_path / "q.png")
    back = np.asarray(Image.open(tmp_path / "q.png"))
    mse = np.square(back.astype(float) - pixels).mean()
    assert report.rows[0].psnr == pytest.approx(10 * np.log10(255**2 / mse), abs=1e-3)
    assert report.rows[0].psnr > 30


def test_large_picture_is_one_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "CHUNK_ELEMENTS", 500)
    Image.fromarray(RNG.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(tmp_path / "p.png")
    laconic.compress(tmp_path / "p.png")
    laconic.decompress(tmp_path / "p.png.lac", tmp_path / "q.png")
    assert Image.open(tmp_path / "q.png").size == (30, 40)


def test_picture_with_alpha_is_kept_as_bytes(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save(tmp_path / "a.png")
    laconic.compress(tmp_path / "a.png")
    laconic.decompress(tmp_path / "a.png.lac", tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("content", [b"", b"x", b"abc" * 1000, bytes(range(256)) * 20])
def test_bytes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f.txt").write_bytes(content)
    laconic.compress(tmp_path / "f.txt")
    laconic.decompress(tmp_path / "f.txt.lac", tmp_path / "g.txt")
    assert (tmp_path / "g.txt").read_bytes() == content


def test_everything_without_loss(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    weights(folder / "m.safetensors")
    (folder / "notes.txt").write_text("text")
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(folder / "p.png")
    report = laconic.compress(folder, recipe="lossless")
    assert {r.recipe for r in report.rows} == {"tensors", "bytes-mix"} and not any(r.error for r in report.rows)
    laconic.decompress(tmp_path / "f.lac", tmp_path / "g")
    a, b = load_file(folder / "m.safetensors"), load_file(tmp_path / "g" / "m.safetensors")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    weights(folder / "model-00001-of-00002.safetensors")
    weights(folder / "model-00002-of-00002.safetensors")
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "sub" / "notes.txt").write_text("hello")
    laconic.compress(folder, bits=3)
    laconic.decompress(tmp_path / "model.lac", tmp_path / "again")
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    again = tmp_path / "again"
    assert names == sorted(p.relative_to(again).as_posix() for p in again.rglob("*") if p.is_file())
    assert (again / "config.json").read_text() == '{"a": 1}'
    assert (again / "sub" / "notes.txt").read_text() == "hello"


def test_arrays_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "CHUNK_ELEMENTS", 5000)
    monkeypatch.setattr(formats, "CHUNK_BYTES", 1000)
    x = RNG.standard_normal((100, 128)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "t.txt").write_bytes(b"some text " * 500)
    for name in ("x.npy", "t.txt"):
        laconic.compress(tmp_path / name)
        laconic.decompress(tmp_path / f"{name}.lac", tmp_path / f"b-{name}")
    assert np.square(np.load(tmp_path / "b-x.npy") - x).mean() < 0.02
    assert (tmp_path / "b-t.txt").read_bytes() == b"some text " * 500
    info = laconic.info(tmp_path / "x.npy.lac")
    assert len(info.packets) == 3
    assert sum(info.by_role.values()) == info.n_bytes


def test_overwriting_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    laconic.compress(tmp_path / "a")
    with pytest.raises(FileExistsError):
        laconic.compress(tmp_path / "a")
    laconic.compress(tmp_path / "a", force=True)
    with pytest.raises(FileExistsError):
        laconic.decompress(tmp_path / "a.lac")
    laconic.decompress(tmp_path / "a.lac", force=True)


@pytest.mark.parametrize("cut", [0, 3, 4, 5, 20, -5, -1])
def test_damaged_files_leave_nothing(tmp_path: Path, cut: int) -> None:
    source = weights(tmp_path / "m.safetensors")
    laconic.compress(source)
    whole = (tmp_path / "m.safetensors.lac").read_bytes()
    (tmp_path / "bad.lac").write_bytes(whole[:cut])
    (tmp_path / "out").write_bytes(b"old")
    with pytest.raises(laconic.CorruptStream):
        laconic.decompress(tmp_path / "bad.lac", tmp_path / "out", force=True)
    with pytest.raises(laconic.CorruptStream):
        laconic.verify(tmp_path / "bad.lac")
    assert (tmp_path / "out").read_bytes() == b"old"
    assert not list(tmp_path.glob("*.part")) + list(tmp_path.glob(".*"))


def test_every_flip_of_a_small_file_is_caught(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a text that is short, a text")
    laconic.compress(tmp_path / "a")
    whole = (tmp_path / "a.lac").read_bytes()
    for i in range(len(whole)):
        bad = bytearray(whole)
        bad[i] ^= 1 << (i % 8)
        with pytest.raises(laconic.CodecError):
            laconic.decompress(io.BytesIO(bytes(bad)), io.BytesIO())


def test_paths_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    from laconic.sources.archive import Entry, Item, Writer

    for path in ("../evil", "/evil", "a/../../evil", "", "."):
        out = io.BytesIO()
        w = Writer(out, [Entry(path, "bytes", {}, (Item("", "bytes", (1,), 1),)), Entry("b", "bytes", {}, ())])
        w.add(laconic.codec("bytes-mix").encode(b"x"))
        w.finish()
        (tmp_path / "e.lac").write_bytes(out.getvalue())
        with pytest.raises(laconic.CorruptStream, match="path"):
            laconic.decompress(tmp_path / "e.lac", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.lac"]


CHILD = "import sys, laconic; laconic.compress(sys.argv[1], sys.argv[2], force=True)"


def test_full_disk_leaves_input_and_old_output(tmp_path: Path) -> None:
    """A limit on file size stands in for a full disk: writing fails half-way."""
    np.save(tmp_path / "x.npy", RNG.integers(0, 256, 200_000, dtype=np.uint8))
    before = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "out.lac").write_bytes(b"old")
    limit = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50000, 50000))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", limit + CHILD, tmp_path / "x.npy", tmp_path / "out.lac"], capture_output=True
    )
    assert run.returncode == 1 and b"File too large" in run.stderr
    assert (tmp_path / "out.lac").read_bytes() == b"old"
    assert (tmp_path / "x.npy").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.lac", "x.npy"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_kill_in_mid_write_leaves_input_and_old_output(tmp_path: Path, how: signal.Signals) -> None:
    np.save(tmp_path / "x.npy", RNG.integers(0, 256, 3_000_000, dtype=np.uint8).reshape(30, -1))
    (tmp_path / "out.lac").write_bytes(b"old")
    slow = (
        "import signal, sys, time, laconic.sources.files as f\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # whoever started the tests may have it ignored
        "f.formats.CHUNK_ELEMENTS = 100_000\n"
        "add = f.archive.Writer.add\n"
        "def late(self, packet):\n"
        "    n = add(self, packet); self.out.flush(); print('wrote', flush=True); time.sleep(0.2); return n\n"
        "f.archive.Writer.add = late\n"
        "import laconic.cli.main as m\n"
        "sys.argv = ['laconic', 'compress', sys.argv[1], '-o', sys.argv[2], '-f']\n"
        "m.main()\n"
    )
    args = [sys.executable, "-c", slow, str(tmp_path / "x.npy"), str(tmp_path / "out.lac")]
    child = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None and child.stdout.readline()
    os.kill(child.pid, how)
    child.wait(20)
    assert child.returncode != 0
    assert (tmp_path / "out.lac").read_bytes() == b"old"
    assert len(np.load(tmp_path / "x.npy")) == 30
    if how is not signal.SIGKILL:
        assert sorted(p.name for p in tmp_path.iterdir()) == ["out.lac", "x.npy"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux' account of a process' peak memory")
def test_memory_stays_bounded(tmp_path: Path) -> None:
    """Peak memory of a whole process: three times the largest tensor, and 300 MB, most of which is importing torch."""
    largest, n_rows = 1 << 25, 1 << 14
    g = torch.Generator().manual_seed(0)
    for name, rows in (("small", 64), ("big", n_rows)):
        tensors = {f"t{i}": torch.randn(rows, largest // n_rows, generator=g) for i in range(2)}
        save_file(tensors, tmp_path / f"{name}.safetensors")
    code = (
        "import sys, laconic\n"
        "report = laconic.compress(sys.argv[1], sys.argv[2], bits=4, recipe='k-quant')\n"
        "assert all(r.recipe.startswith('k-quant') for r in report.rows)\n"
        "laconic.verify(sys.argv[2])\n"
        "status = open('/proc/self/status').read()\n"
        "print(1024 * int(status.split('VmHWM:')[1].split()[0]))\n"
    )
    # The small one leaves compiled kernels on disk, so that the big one needs no compiler. VmHWM is the process' own peak;
    # getrusage would count the parent's memory at the fork.
    for name in ("small", "big"):
        args = [sys.executable, "-c", code, str(tmp_path / f"{name}.safetensors"), str(tmp_path / f"{name}.lac")]
        peak = int(subprocess.run(args, capture_output=True, text=True, check=True).stdout)
    assert peak < 3 * 4 * largest + 300_000_000, f"{peak / 1e6:.0f} MB"
