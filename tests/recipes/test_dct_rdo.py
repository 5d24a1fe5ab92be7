"""dct-rdo: a third below JPEG at equal PSNR, and the stages that are particular to it."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

import laconic
from laconic.core.errors import BadConfig, BadInput, CorruptStream
from laconic.core.stage import Symbols
from laconic.quantize.rdo import RateTarget, RdoQuantizer, Step
from laconic.sources.images.stages import Deblock, OpponentPlanes


def _picture(height=192, width=256, seed=0):
    """Patches with edges over a 1/f² ground: neither flat nor noise."""
    rng = np.random.default_rng(seed)
    f = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)) + 1 / width
    ground = np.stack(
        [np.fft.ifft2(np.fft.fft2(rng.standard_normal((height, width))) / f**1.3).real for _ in range(3)], -1
    )
    ground = ground / ground.std() * [30, 12, 12] @ np.array([[1, 1, 1], [1, 0, -1], [-1, 1, 0]])
    y, x = np.mgrid[:height, :width]
    for _ in range(12):
        cy, cx, r = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(8, 50)
        ground[(y - cy) ** 2 + (x - cx) ** 2 < r * r] += rng.normal(0, 30, 3)
    return np.clip(np.rint(ground + 128), 0, 255).astype(np.uint8)


def _psnr(a, b):
    return 10 * np.log10(255**2 / max(((a.astype(np.float64) - b) ** 2).mean(), 1e-9))


def _coded(picture, **settings):
    """(bytes of the packet, PSNR)."""
    packet = laconic.codec("dct-rdo", **settings).encode(torch.from_numpy(picture))
    back = laconic.decode(packet).numpy()
    assert back.dtype == np.uint8 and back.shape == picture.shape
    return len(packet), _psnr(picture, back)


def _anchor(picture, kind, quality, **settings):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, quality=quality, **settings)
    return file.tell(), _psnr(picture, np.array(Image.open(file).convert("RGB")))


def _rate_gain(anchor, ours):
    """Mean log-ratio of the rates over the PSNRs that both reach (Bjøntegaard 2001, piecewise linear), as a factor."""
    anchor, ours = sorted(anchor, key=lambda p: p[1]), sorted(ours, key=lambda p: p[1])
    grid = np.linspace(max(anchor[0][1], ours[0][1]), min(anchor[-1][1], ours[-1][1]), 99)
    curve = [np.interp(grid, [p[1] for p in c], np.log([p[0] for p in c])) for c in (ours, anchor)]
    return float(np.exp((curve[0] - curve[1]).mean()))


def test_a_third_below_jpeg():
    picture = _picture()
    ours = [_coded(picture, quality=q) for q in (20, 35, 50, 65)]
    jpeg = [_anchor(picture, "JPEG", q, optimize=True, subsampling=2) for q in (10, 20, 40, 60, 80, 92)]
    assert _rate_gain(jpeg, ours) < 0.67


def test_below_webp_on_photographs(data):
    gains = []
    for name in ("kodim04.png", "kodim22.png"):
        picture = np.array(Image.open(data / "kodak" / name).convert("RGB"))[64:320, 128:512]
        ours = [_coded(picture, quality=q) for q in (15, 30, 45, 60)]
        jpeg = [_anchor(picture, "JPEG", q, optimize=True, subsampling=2) for q in (8, 20, 40, 60, 80, 92)]
        webp = [_anchor(picture, "WEBP", q, method=6) for q in (1, 10, 30, 60, 80, 92)]
        assert _rate_gain(jpeg, ours) < 0.6
        gains.append(_rate_gain(webp, ours))
    assert np.mean(gains) < 0.87


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 3), (7, 9, 3), (33, 17), (1, 40, 3), (40, 1), (16, 16, 3), (2, 3)])
def test_any_size(shape):
    picture = _picture(64, 64)[: shape[0], : shape[1]]
    _, psnr = _coded(picture if len(shape) == 3 else np.ascontiguousarray(picture[..., 1]), quality=90)
    assert psnr > 38


@pytest.mark.parametrize("settings", [{"block": 8}, {"block": 32}, {"chroma": "420"}])
def test_settings(settings):
    picture = _picture(96, 128)
    n, psnr = _coded(picture, quality=60, **settings)
    plain_n, plain_psnr = _coded(picture, quality=60)
    assert 0.7 * plain_n < n < 1.3 * plain_n and psnr > plain_psnr - 4


@pytest.mark.parametrize("bits", [0.5, 1.0, 3.0])
def test_rate_target(bits):
    picture = _picture()
    packet = laconic.codec("dct-rdo", bits=bits).encode(torch.from_numpy(picture))
    header = laconic.codec("dct-rdo", bits=bits).encode(torch.zeros(0, 0, 3, dtype=torch.uint8))
    rate = 8 * (len(packet) - len(header)) / picture.shape[0] / picture.shape[1]
    assert 0.97 * bits < rate <= bits * 1.001


def test_rate_target_that_cannot_be_met_is_neared():
    flat = torch.full((40, 40, 3), 77, dtype=torch.uint8)
    assert (laconic.decode(laconic.codec("dct-rdo", bits=20.0).encode(flat)) == 77).all()
    noise = torch.randint(0, 256, (40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert len(laconic.codec("dct-rdo", bits=1e-3).encode(noise)) < 600


@pytest.mark.parametrize(
    "settings",
    [{"quality": 50, "bits": 1.0}, {"quality": 101}, {"bits": 0}, {"block": 12}, {"chroma": "422"}, {"lam": -1.0}],
)
def test_settings_that_cannot_work(settings):
    with pytest.raises(BadConfig):
        laconic.codec("dct-rdo", **settings)


@pytest.mark.parametrize("x", [np.zeros((4, 4, 4), np.uint8), np.zeros(9, np.uint8), np.zeros((4, 4), np.float32)])
def test_what_is_no_picture_is_refused(x):
    with pytest.raises(BadInput):
        laconic.codec("dct-rdo").encode(torch.from_numpy(x))


def test_opponent_planes_keep_squared_errors():
    picture = torch.from_numpy(_picture(32, 48))
    planes, _ = OpponentPlanes().encode(picture)
    assert planes.shape == (3, 32, 48)
    assert torch.equal(OpponentPlanes().decode(planes, {}), picture)
    assert torch.isclose((planes**2).sum(), ((picture.float() - 128) ** 2).sum(), rtol=1e-5)
    with pytest.raises(CorruptStream):
        OpponentPlanes().decode(planes[:2], {})


def test_deblocking_removes_small_steps_and_keeps_edges():
    planes = torch.zeros(1, 32, 64)
    planes[:, :, 16:] += 0.15  # a step of quantization
    planes[:, :, 48:] += 20.0  # an edge
    planes[:, 16:] += 0.1
    out = Deblock(16).decode(planes, {})
    assert Deblock(16).encode(planes)[0] is planes
    assert float(out.diff(dim=2)[:, :, :32].abs().max()) < 0.06
    assert float(out[0, 8, 48] - out[0, 8, 47]) > 19.5
    assert float((out - planes).abs().max()) <= 0.18 * 2 + 1e-6


def test_deblocking_leaves_narrow_pictures_alone():
    planes = torch.randn(1, 5, 18)
    assert torch.equal(Deblock(16).decode(planes, {}), planes)


def test_steps_grow_with_frequency():
    x = torch.zeros(1, 1, 1, 64)
    q = Symbols(np.ones((1, 1, 1, 64), np.int32), 0)
    steps = RdoQuantizer(slope=1.0).decode(q, {}).ravel()
    assert steps[0] == 1 and steps[-1] == 2 and (steps.diff()[:1] > 0).all()
    assert not RdoQuantizer().encode(x)[0].index.any()
    with pytest.raises(CorruptStream):
        RdoQuantizer().decode(Symbols(np.zeros((1, 1, 1, 63), np.int32), 0), {})


def test_quarter_keeps_low_frequencies_of_later_planes():
    x = torch.full((2, 1, 1, 64), 5.0)
    kept = RdoQuantizer(quarter=True).encode(x)[0].index != 0
    assert kept[0].sum() == 64 and kept[1].sum() == 16


def test_step_out_of_range():
    with pytest.raises(BadConfig):
        Step(0.0)
    codec = laconic.codec("dct-rdo", bits=1.0).stage
    y, side = codec.encode(torch.from_numpy(_picture(32, 32)))
    target = next(s for s in codec.stages if s.takes is not s.gives)
    assert type(target) is RateTarget
    for step in (np.array([np.nan]), np.array([-1.0]), np.array([]), np.array([1e9])):
        with pytest.raises(CorruptStream):
            codec.decode(y, {**side, "1": {**side["1"], "step": step.astype(np.float32)}})
