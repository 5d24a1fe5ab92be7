"""What every recipe of the registry owes its users."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import laconic
from laconic.core import registry
from laconic.core.packet import info
from laconic.core.reopen import reopen
from laconic.core.stage import Kind

from .samples import RECIPES, codec, fitted, raw, same, sample, settings_of

ARRAYS = [n for n in RECIPES if codec(n).stage.takes is Kind.ARRAY]
FLOATS = [n for n in ARRAYS if "float32" in codec(n).stage.accepts]
LOSSY_FLOATS = [n for n in FLOATS if not codec(n).stage.lossless]
GOLDEN = Path(__file__).parents[1] / "golden"


def error(x: torch.Tensor, y: torch.Tensor, name: str = "") -> float:
    """Relative squared error; of running sums where a recipe sends now what it owed before."""
    if name and registry.recipe(name).domain == "gradients":
        x, y = x.double().cumsum(0), y.double().cumsum(0)
    return float((x.double() - y.double()).square().sum() / x.double().square().sum())


@pytest.mark.parametrize("name", RECIPES)
def test_there_and_back(name: str) -> None:
    c, x = fitted(name), sample(name)
    before = x if isinstance(x, bytes) else x.clone()
    packet = c.encode(x)
    assert same(x, before), "the input was changed"
    if c.stage.deterministic:
        assert c.encode(x) == packet, "the same input gave other bytes"
    back = laconic.decode(packet)
    if isinstance(x, bytes) or c.stage.lossless:
        assert same(back, x)
    else:
        assert back.shape == x.shape and back.dtype == x.dtype
        assert torch.isfinite(back.float()).all()
        assert error(x, back, name) < 1.0, "worse than sending nothing"


@pytest.mark.parametrize("name", RECIPES)
def test_rate_is_bytes(name: str) -> None:
    packet = fitted(name).encode(sample(name))
    said = info(packet)
    assert said.packet_bytes == len(packet)
    assert sum(said.ledger.by_role().values()) == len(packet)
    assert said.recipe == name


@pytest.mark.parametrize("name", RECIPES)
def test_configuration_round_trip(name: str) -> None:
    stage = fitted(name).stage
    data = json.loads(json.dumps(registry.config(stage)))
    assert registry.config(registry.build(data)) == registry.config(stage)


@pytest.mark.parametrize("name", RECIPES)
def test_model_outside_the_packet(name: str, tmp_path: Path) -> None:
    c, x = fitted(name), sample(name)
    if not c.model():
        assert c.encode(x, embed=False) == c.encode(x)
        return
    packet = c.encode(x, embed=False)
    assert len(packet) < len(c.encode(x))
    c.save_model(tmp_path / "m.safetensors")
    assert same(laconic.decode(packet, model=tmp_path / "m.safetensors"), laconic.decode(c.encode(x)))
    with pytest.raises(laconic.ModelMismatch):
        laconic.decode(packet)
    other = codec(name).fit(sample(name, seed=5))
    if other.model_hash() != c.model_hash():
        with pytest.raises(laconic.ModelMismatch):
            laconic.decode(packet, model=other)


def test_other_process_and_thread_counts_give_the_same(tmp_path: Path) -> None:
    """Every packet decoded in fresh processes with 1 and with 2 threads, to the same bytes as here."""
    want = {}
    for name in RECIPES:
        packet = fitted(name).encode(sample(name))
        (tmp_path / f"{name}.lac").write_bytes(packet)
        back = laconic.decode(packet)
        want[name] = hashlib.sha256(back if isinstance(back, bytes) else raw(back).numpy().tobytes()).hexdigest()
    code = (
        "import sys, json, hashlib, pathlib, laconic, torch\n"
        "out = {}\n"
        "for p in sorted(pathlib.Path(sys.argv[1]).glob('*.lac')):\n"
        "    b = laconic.decode(p.read_bytes())\n"
        "    b = b if isinstance(b, bytes) else b.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()\n"
        "    out[p.stem] = hashlib.sha256(b).hexdigest()\n"
        "print(json.dumps(out))"
    )
    for threads in ("1", "2"):
        env = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads}
        run = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], env=env, capture_output=True, text=True, check=True
        )
        assert json.loads(run.stdout) == want


@pytest.mark.parametrize("name", [n for n in RECIPES if "bits" in settings_of(n)])
def test_distortion_falls_as_rate_grows(name: str) -> None:
    x, low, high = sample(name), [], []
    default = settings_of(name)["bits"]
    for bits, out in ((2 if isinstance(default, int) else 2.0, low), (4 if isinstance(default, int) else 4.0, high)):
        c = fitted(name, bits=bits)
        packet = c.encode(x)
        out += [error(x, laconic.decode(packet)), len(packet)]
    assert high[0] < low[0], "more bits, more distortion"
    assert high[1] > low[1], "more bits asked for, not more bytes"


@pytest.mark.parametrize("name", LOSSY_FLOATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused_by_name(name: str, bad: float) -> None:
    c, x = fitted(name), sample(name)
    x.view(-1)[17] = bad
    with pytest.raises(laconic.BadInput, match="NaN or Inf"):
        c.encode(x)
    with pytest.raises(laconic.BadInput, match="NaN or Inf"):
        codec(name).fit(x)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_and_double(name: str, dtype: torch.dtype) -> None:
    x = sample(name).to(dtype)
    back = laconic.decode(fitted(name).encode(x))
    assert back.dtype == dtype and back.shape == x.shape
    assert error(x, back, name) < 1.0


@pytest.mark.parametrize("name", LOSSY_FLOATS)
def test_doubles_beyond_float32_are_refused(name: str) -> None:
    x = sample(name).double()
    x.view(-1)[3] = 1e300
    with pytest.raises(laconic.BadInput, match="float32"):
        fitted(name).encode(x)


@pytest.mark.parametrize("name", ARRAYS)
def test_memory_layout_does_not_matter(name: str) -> None:
    c, x = fitted(name), sample(name)
    scattered = torch.empty(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)[..., ::2].copy_(x)
    assert not scattered.is_contiguous()
    assert c.encode(scattered) == c.encode(x)
    assert c.encode(np.asfortranarray(x.numpy())) == c.encode(x)


@pytest.mark.parametrize("name", RECIPES)
def test_empty(name: str) -> None:
    c = fitted(name)
    if c.stage.takes is Kind.BYTES:
        assert laconic.decode(c.encode(b"")) == b""
        return
    x = sample(name)[:0]
    back = laconic.decode(c.encode(x))
    assert back.shape == x.shape and back.dtype == x.dtype


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 1), (5, 7), (2, 3, 11), (1, 33), (130, 2)])
def test_any_shape_is_coded_or_refused_by_name(name: str, shape: tuple[int, ...]) -> None:
    x = torch.linspace(-1, 2, int(np.prod(shape))).reshape(shape) if shape else torch.tensor(0.5)
    try:
        packet = codec(name).fit(x).encode(x)
    except (laconic.BadInput, laconic.BadConfig) as e:
        assert len(str(e)) > 20
        return
    back = laconic.decode(packet)
    assert back.shape == x.shape
    assert torch.isfinite(back).all()


@pytest.mark.parametrize("name", LOSSY_FLOATS)
def test_constant_and_extreme_values(name: str) -> None:
    like = sample(name)
    for x in (
        torch.zeros_like(like),
        torch.full_like(like, 3e-39),
        torch.full_like(like, -2.5),
        like * 1e30,
        like * 1e-30,
    ):
        back = laconic.decode(codec(name).fit(x).encode(x))
        assert torch.isfinite(back).all()
        longest = len(x) if registry.recipe(name).domain == "gradients" else 4  # a memory may send everything at once
        assert back.abs().max() <= longest * x.abs().max() + 1e-30


@pytest.mark.parametrize("name", ARRAYS)
def test_wrong_kinds_are_refused(name: str) -> None:
    c = fitted(name)
    bads: list[Any] = [b"bytes", "text", ["a"], np.array([object()]), np.zeros((4, 4), dtype=np.complex64)]
    for bad in bads:
        with pytest.raises(laconic.BadInput):
            c.encode(bad)


@pytest.mark.parametrize("name", RECIPES)
def test_unknown_settings_name_the_known(name: str) -> None:
    with pytest.raises(laconic.BadConfig, match="did you mean"):
        laconic.codec(name, no_such_setting=1)
    with pytest.raises(laconic.BadConfig, match="did you mean"):
        laconic.codec(name[:-1] + "~")


@pytest.mark.parametrize("name", RECIPES)
def test_golden(name: str, request: pytest.FixtureRequest) -> None:
    """The bitstream of version 1 is frozen: today's encoder writes it, and it decodes to what it decoded to."""
    folder = GOLDEN / name
    x = sample(name, seed=11)
    packet = fitted(name).encode(x)
    back = laconic.decode(packet)
    if request.config.getoption("--rewrite-goldens"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "packet.lac").write_bytes(packet)
        np.save(
            folder / "decoded.npy", np.frombuffer(back, np.uint8) if isinstance(back, bytes) else back.numpy()[..., :8]
        )
    golden = (folder / "packet.lac").read_bytes()
    decoded = np.load(folder / "decoded.npy")
    old = laconic.decode(golden)
    if isinstance(old, bytes):
        assert old == decoded.tobytes()
    else:
        np.testing.assert_allclose(old.numpy()[..., :8], decoded, rtol=1e-5, atol=1e-6)
    if not codec(name).stage.learns_exactly:
        opened = reopen(golden)
        packet = opened.changed(*opened.stage.encode(x)).packet()
    assert packet == golden, "the encoder writes other bytes; see tests/golden/README.md"


@pytest.mark.parametrize("name", RECIPES)
def test_first_line_of_the_card_and_a_source(name: str) -> None:
    doc = registry.load(registry.recipe(name).target).__doc__ or ""
    assert doc.strip() and "Source" in doc, "a recipe's docstring is its card: it names its source"
