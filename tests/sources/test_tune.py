from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from laconic.core.packet import codec
from laconic.sources.weights.recipe import Tune, WeightRecipe

from .tiny import IDS, tiny_llama


@pytest.fixture
def folder() -> Path:
    return tiny_llama()


def compress(folder: Path, out: Path, tune: Any) -> Any:
    from laconic.sources.weights.compress import compress

    recipe = WeightRecipe(
        lambda rate: codec("gptq", bits=2, group=32).stage,
        (2.0,),
        nominal=2.0,
        tune=tune if tune is None or isinstance(tune, Tune) else Tune(tune),
    )
    return compress(folder, out=out, recipe=recipe, calibration=IDS, threads=1)


def test_gains_lower_the_divergence_and_cost_nothing(folder: Path, tmp_path: Path) -> None:
    from laconic.sources.weights.store import Packed
    from laconic.sources.weights.tune import tune_gains

    seen: list[float] = []

    def tune(tuning: Any) -> None:
        seen.append(tuning.judge())
        tune_gains(tuning, steps=25, rate=0.02)
        seen.append(tuning.judge())

    plain, tuned = compress(folder, tmp_path / "plain", None), compress(folder, tmp_path / "tuned", tune)
    assert seen[1] < seen[0]
    assert tuned.weight_bytes == plain.weight_bytes
    assert tuned.notes[0].startswith(f"tuned: KL {seen[0]:.4f} to {seen[1]:.4f}")
    a, b = Packed(tmp_path / "plain"), Packed(tmp_path / "tuned")
    assert all(a[name] == b[name] for name in a)
    changed = [k for k in a.kept if not torch.equal(a.source[k], b.source[k])]
    assert changed
    assert all(a.source[k].ndim == 1 and a.source[k].dtype == b.source[k].dtype for k in changed)


def test_moved_codes_are_in_the_packets_that_are_written(folder: Path, tmp_path: Path) -> None:
    from laconic.sources.weights.store import Packed

    said: dict[str, torch.Tensor] = {}

    def tune(tuning: Any) -> None:
        m = tuning.matrices[1]
        codes = tuning.codes(m)
        tuning.put(m, codes.packet((codes.index + 1) % 4))
        said[m.name] = tuning.coded.parameter(m).clone()

    compress(folder, tmp_path / "moved", tune)
    written = Packed(tmp_path / "moved")
    for name, weight in said.items():
        assert torch.equal(written.decode(name), weight)


def test_a_model_beyond_the_limit_stays_as_coded(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from laconic.sources.weights import tune

    monkeypatch.setattr(tune, "LIMIT_BYTES", 1 << 10)

    def never(tuning: Any) -> None:
        raise AssertionError("it was tuned")

    report = compress(folder, tmp_path / "large", never)
    assert report.notes[0].startswith("not tuned: that takes up to")


def _classifier() -> torch.nn.Module:
    """Convolutions and normalizations in no chain, with statistics that are not those of its inputs."""
    nn = torch.nn
    with torch.random.fork_rng():
        torch.manual_seed(2)
        net = nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
            nn.Conv2d(24, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 48, bias=False),
        )  # fmt: skip
        for m in net:
            if isinstance(m, nn.BatchNorm2d):
                nn.init.uniform_(m.weight, 0.5, 1.5)
                nn.init.uniform_(m.bias, -0.5, 0.5)
    return net.eval()


PICTURES = torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def test_a_module_is_tuned_for_no_bytes_and_its_source_is_untouched(tmp_path: Path) -> None:
    from laconic.sources.weights.compress import compress
    from laconic.sources.weights.tune import tune_gains
    from laconic.weights import load

    net = _classifier()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    tune = Tune(lambda tuning: tune_gains(tuning, steps=30, rate=0.01, n=2), modules_only=True)

    def made(tune: Tune | None, out: Path) -> Any:
        recipe = WeightRecipe(lambda rate: codec("gptq", bits=2).stage, (2.0,), nominal=2.0, tune=tune)
        return compress(net, out=out, recipe=recipe, calibration=PICTURES[:64], threads=1)

    (plain, said), (tuned, more) = made(None, tmp_path / "plain"), made(tune, tmp_path / "tuned")
    assert more.weight_bytes == said.weight_bytes and not said.notes
    assert more.notes[0].startswith("tuned: KL ")
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not torch.equal(tuned[1].weight, plain[1].weight)
    assert torch.equal(tuned[3].weight, plain[3].weight)  # codes are those of the recipe
    with torch.no_grad():
        true, near, far = (m(PICTURES[64:]) for m in (net, tuned, plain))  # pictures that tuned nothing
    assert (near - true).square().mean() < 0.8 * (far - true).square().mean()
    read = load(tmp_path / "tuned", into=_classifier(), packed=False)
    assert all(torch.equal(v, tuned.state_dict()[k]) for k, v in read.state_dict().items())


def test_a_folder_is_left_alone_where_only_modules_are_tuned(folder: Path, tmp_path: Path) -> None:
    def tune(tuning: Any) -> None:
        raise AssertionError("it was tuned")

    report = compress(folder, tmp_path / "folder", Tune(tune, modules_only=True))
    assert not report.notes


def test_inputs_that_give_one_output_come_in_groups() -> None:
    from laconic.sources.weights.calibrate import batches
    from laconic.sources.weights.trial import samples_of

    given = batches([PICTURES[:10], PICTURES[10:16]])
    found = samples_of(given, 99, 4)
    assert [len(s[""]) for s in found] == [4, 4, 2, 4, 2]  # none of two batches
    assert torch.equal(torch.cat([s[""] for s in found]), PICTURES[:16])
    single = samples_of(given, 4)
    assert [len(s[""]) for s in single] == [1, 1, 1, 1]
    assert torch.equal(torch.cat([s[""] for s in single]), PICTURES[[0, 5, 10, 15]])
