"""Caches on a device: pages as tensors, read by the GPU's kernels. Without a GPU Triton's interpreter reads them."""

import os

import numpy as np
import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
pytest.importorskip("triton")

import laconic.kv  # noqa: E402
from laconic.kernels.attend import attend_plain  # noqa: E402
from laconic.kernels.triton_attend import attend_triton  # noqa: E402
from laconic.recipes.kv.auto_cache import auto_cache  # noqa: E402
from laconic.recipes.kv.turboquant_cache import turboquant_cache  # noqa: E402
from laconic.sources.kv.device import DevicePast  # noqa: E402
from laconic.sources.kv.past import PagedPast  # noqa: E402

from . import kv_models  # noqa: E402

HEADS, D = 2, 32


def pair(recipe, x):
    codec = recipe.keys(3.0)
    codec = codec.fit(x[0]) if recipe.learns == "once" else codec
    return PagedPast(codec, HEADS, D), DevicePast(codec, HEADS, D, DEVICE)


def tokens(n, seed=0, batch=2):
    spread = torch.linspace(2, 0.1, D)
    return torch.randn(batch, HEADS, n, D, generator=torch.Generator().manual_seed(seed)) * spread + 0.5


@pytest.mark.parametrize("make", [auto_cache, turboquant_cache])
def test_pages_hold_what_the_cpu_s_hold(make):
    x = tokens(300)
    here, there = pair(make(), x)
    for part in x.split([130, 3, 64, 103], 2):
        here.append(part)
        there.append(part.to(DEVICE))
    assert there.nbytes == here.nbytes and there.n_tokens == here.n_tokens == 300
    ours, theirs = (torch.cat([p.tile(a, b).cpu() for a, b in p.bounds()], 2) for p in (there, here))
    # A value within a rounding of a threshold may take the level beside it: few do.
    assert (abs(ours - theirs) < 1e-4).float().mean() > 0.995
    saved, stored = there.on_host(there.pages[0][1]), here.on_host(here.pages[0][1])
    assert saved[0].shape == stored[0].shape and (saved[0] == stored[0]).mean() > 0.98
    for past in (here, there):
        past.select([1, 0, 1])
        past.crop(201)
        past.forget(70)
        past.append(tokens(5, seed=2, batch=3).to(DEVICE if past is there else "cpu"))
    assert (
        (there.first, there.n_tokens, there.nbytes)
        == (here.first, here.n_tokens, here.nbytes)
        == (64, 206, here.nbytes)
    )
    ours, theirs = there.tile(70, 206).cpu(), here.tile(70, 206)
    assert (abs(ours - theirs) < 1e-4).float().mean() > 0.995


@pytest.mark.parametrize("make", [auto_cache, turboquant_cache])
def test_attention_reads_the_pages(make):
    x = tokens(150, seed=3)
    here, there = pair(make(), x)
    there.append(x.to(DEVICE))
    here.append(x)
    q = torch.randn(HEADS, 2, D, generator=torch.Generator().manual_seed(4)) / D**0.5
    for b in range(2):
        coded = there.coded(b)
        acc, _, mass = (a.cpu().numpy() for a in attend_triton(q.to(DEVICE), coded, coded, 150))
        plain = here.coded(b)
        kept = tuple(c for c in plain.kept[1] if c is not None)
        want, _, total = attend_plain(q.numpy(), *[plain._replace(kept=(plain.kept[0], kept))] * 2, 150)
        np.testing.assert_allclose(
            acc / mass[..., None], want / total[..., None], atol=0.02 * abs(want / total[..., None]).max()
        )


def test_nan_is_counted_and_coded_as_nothing():
    x = tokens(64, batch=1)
    _, there = pair(turboquant_cache(), x)
    x[0, 1, 5, 3] = torch.nan
    there.append(x.to(DEVICE))
    assert there.exact == 1 and there.broken == {1}
    assert bool(there.tile(0, 64).isfinite().all())


@pytest.mark.skipif(DEVICE.type == "cpu", reason="no GPU")
@pytest.mark.parametrize("recipe, settings", [("auto", {}), ("auto", {"rope": "before"}), ("turboquant", {})])
def test_a_model_on_the_gpu_writes_what_it_writes_on_the_cpu(recipe, settings, tmp_path):
    model = kv_models.model("llama").eval()
    ids = torch.randint(0, model.config.vocab_size, (2, 320), generator=torch.Generator().manual_seed(5))

    def logits(device):
        there = model.to(device)
        cache = laconic.kv.cache(there, recipe=recipe, bits=4, window=8, **settings)
        found = []
        with torch.inference_mode():
            found.append(there(input_ids=ids[:, :300].to(device), past_key_values=cache).logits[:, -1:])
            for t in range(300, 320):
                found.append(there(input_ids=ids[:, t : t + 1].to(device), past_key_values=cache).logits)
        cache.save(tmp_path / f"{device}.lac")
        return torch.cat(found, 1).float().cpu(), cache.nbytes

    (here, n_here), (there, n_there) = logits("cpu"), logits("cuda")
    assert n_here == n_there
    assert (here - there).abs().max() < 0.05 * here.std()
