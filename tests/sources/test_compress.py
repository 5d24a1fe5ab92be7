"""The walk over whole models: families, budgets, kills, and inputs that cannot work."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from laconic.core.errors import BadConfig, BadInput, CorruptStream
from laconic.core.stage import Stats
from laconic.quantize.feedback_trellis import FeedbackTrellis
from laconic.sources.weights import compress as room
from laconic.sources.weights import store
from laconic.sources.weights.network import Network, skeleton

from . import families


def _compressed(family: str, tmp_path: Path, **settings) -> tuple[Path, room.Report]:
    source = families.folder(family, tmp_path / "model")
    settings = {"bits": 4.0, "calibration": families.inputs(family), **settings}
    return tmp_path / "out", room.compress(source, out=tmp_path / "out", **settings)


@pytest.mark.parametrize("family", families.MADE)
def test_every_family_is_walked(family: str, tmp_path: Path) -> None:
    out, report = _compressed(family, tmp_path, recipe="gptq", bits=None)
    packed = store.Packed(out)
    assert {r.name for r in report.rows} == set(packed) and not (tmp_path / "out.partial").exists()
    assert max(r.error for r in report.rows) < 0.05, "4 bits with error feedback lose a few thousandths"
    original = Network(skeleton(tmp_path / "model"), _source(tmp_path))
    for m in original.matrices:
        w, back = m.take(original.value(m.name.partition("#")[0])), packed.decode(m.name)
        assert back.shape == m.shape and float((back - w).square().sum() / w.square().sum()) < 0.2


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "vit"])
def test_a_budget_counts_everything(family: str, tmp_path: Path) -> None:
    out, report = _compressed(family, tmp_path)
    n_bytes = sum(p.stat().st_size for p in out.glob("*.safetensors"))
    assert n_bytes == report.weight_bytes
    assert abs(8 * n_bytes / report.n_parameters - 4.0) <= 8 * 2048 / report.n_parameters


def _source(tmp_path: Path):
    from laconic.sources.weights.network import open_source

    return open_source(tmp_path / "model", skeleton(tmp_path / "model"), tmp_path / "spool")


def test_calibration_makes_the_coded_model_closer(tmp_path: Path) -> None:
    model, ids = families.model("llama"), families.inputs("llama", 16)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    losses = {}
    for name, calibration in (("with", ids), ("without", None)):
        got, _ = room.compress(model, bits=3.0, calibration=calibration)
        with torch.no_grad():
            losses[name] = float((got(ids).logits - model(ids).logits).square().mean())
    assert losses["with"] < losses["without"]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "the input was touched"


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    recipe = "gptq"
    source = families.folder("llama", tmp_path / "model")
    torch.save(families.inputs("llama"), tmp_path / "ids.pt")
    script = (
        "import sys, torch; from laconic.sources.weights.compress import compress; torch.set_num_threads(1);"
        "compress(sys.argv[1], out=sys.argv[2], bits=4.0, recipe=sys.argv[3], calibration=torch.load(sys.argv[4]),"
        "resume=True)"
    )
    command = [sys.executable, "-c", script, str(source)]
    rest = [recipe, str(tmp_path / "ids.pt")]
    started = time.perf_counter()
    subprocess.run([*command, str(tmp_path / "a"), *rest], check=True, timeout=300)
    whole = time.perf_counter() - started
    rng, kills = random.Random(recipe), 0
    for _ in range(3):
        run = subprocess.Popen([*command, str(tmp_path / "b"), *rest])
        try:
            run.wait(timeout=rng.uniform(0.4, 1.0) * whole)
            break
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL)
            run.wait()
            kills += 1
    if not (tmp_path / "b").exists():
        subprocess.run([*command, str(tmp_path / "b"), *rest], check=True, timeout=300)
    for p in sorted((tmp_path / "a").iterdir()):
        assert p.read_bytes() == (tmp_path / "b" / p.name).read_bytes(), f"{p.name} differs after {kills} kills"


def test_a_stop_inside_every_unit_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a kill after each unit, without the chance of one: the journal's save is where the run can be torn."""
    source, ids = families.folder("llama", tmp_path / "model"), families.inputs("llama")
    room.compress(source, out=tmp_path / "a", bits=4.0, calibration=ids)
    save = store.Journal.save
    stops = 0
    while not (tmp_path / "b").exists():
        seen = 0

        def torn(self: store.Journal) -> None:
            nonlocal seen
            seen += 1
            if seen == 2:
                raise KeyboardInterrupt
            save(self)

        monkeypatch.setattr(store.Journal, "save", torn)
        try:
            room.compress(source, out=tmp_path / "b", bits=4.0, calibration=ids, resume=True)
        except KeyboardInterrupt:
            stops += 1
        assert stops < 20
    assert stops >= 3
    for p in sorted((tmp_path / "a").iterdir()):
        assert p.read_bytes() == (tmp_path / "b" / p.name).read_bytes(), p.name


def test_an_unfinished_run_is_not_taken_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, ids = families.folder("llama", tmp_path / "model"), families.inputs("llama")
    with monkeypatch.context() as patched:
        patched.setattr(store, "finish", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            room.compress(source, out=tmp_path / "o", bits=4.0, calibration=ids)
    with pytest.raises(BadInput, match="--resume"):
        room.compress(source, out=tmp_path / "o", bits=4.0, calibration=ids)
    with pytest.raises(BadInput, match="other settings"):
        room.compress(source, out=tmp_path / "o", bits=3.0, calibration=ids, resume=True)
    room.compress(source, out=tmp_path / "o", bits=4.0, calibration=ids, resume=True)
    assert (tmp_path / "o" / "model.safetensors").exists()


def _interrupt(*args: object) -> None:
    raise KeyboardInterrupt


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    source = families.folder("llama", tmp_path / "model")
    torch.save([{"input_ids": b} for b in families.inputs("llama", 8).split(2)], tmp_path / "ids.pt")
    script = tmp_path / "job.py"
    script.write_text(
        "import sys, torch\nfrom laconic.sources.weights.compress import compress\n"
        "ids = torch.load(sys.argv[3])\n"
        "report = compress(sys.argv[1], out=sys.argv[2], bits=4.0, calibration=ids)\n"
        "if report is not None:\n    torch.save({r.name: r.error for r in report.rows}, sys.argv[2] + '.pt')\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    for n, out in (("1", "a"), ("2", "b")):
        arguments = [str(source), str(tmp_path / out), str(tmp_path / "ids.pt")]
        subprocess.run([*torchrun, n, str(script), *arguments], check=True, timeout=300)
    one, two = torch.load(tmp_path / "a.pt"), torch.load(tmp_path / "b.pt")
    # Moments summed in another order choose other levels here and there; what is lost under them stays the same.
    for name, error in one.items():
        assert two[name] == pytest.approx(error, rel=0.1), name


def test_what_is_kept_is_untouched_and_named(tmp_path: Path) -> None:
    out, report = _compressed("llama", tmp_path, keep=["lm_head", "*embed_tokens*"])
    before, after = load_file(tmp_path / "model" / "model.safetensors"), load_file(out / "model.safetensors")
    for name in ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"):
        assert torch.equal(before[name], after[name])
    assert not any("lm_head" in r.name for r in report.rows)
    with pytest.raises(BadInput, match="no matrix has such a name"):
        room.compress(tmp_path / "model", out=tmp_path / "p", bits=4.0, keep=["nonsense"])


def test_experts_that_no_token_reached_are_named(tmp_path: Path) -> None:
    source = families.folder("mixtral", tmp_path / "model")
    one_token = torch.full((2, 16), 7)
    report = room.compress(source, out=tmp_path / "o", bits=4.0, calibration=one_token)
    named = [n for n in report.notes if "no calibration token reached this expert" in n]
    assert named and all("experts" in n for n in named)


def test_shapes_and_values_that_are_odd(tmp_path: Path) -> None:
    """Tied weights, a bias, odd sizes, a layer of zeros, dead columns."""
    torch.manual_seed(0)

    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(37, 53)
            self.zero = torch.nn.Linear(53, 41, bias=False)
            self.dead = torch.nn.Linear(41, 67)
            self.again = self.dead  # shared
            self.conv = torch.nn.Conv2d(3, 40, 3, padding=1)
            torch.nn.init.zeros_(self.zero.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.zero(torch.relu(self.first(x)))
            h = h + torch.arange(41) % 2 * x[:, :1]  # every other column is never met
            y = self.again(h)
            return y.sum() + self.conv(x[:, :27].reshape(-1, 3, 3, 3)).mean((1, 2, 3))

    module = Odd()
    got, report = room.compress(module, recipe="gptq", calibration=torch.randn(64, 37))
    assert len(report.rows) == 4 and got.dead.weight is got.again.weight
    assert torch.equal(got.zero.weight, module.zero.weight) and torch.equal(got.first.bias, module.first.bias)
    error = (got.first.weight - module.first.weight).square().sum() / module.first.weight.square().sum()
    assert 0 < float(error) < 0.05


def test_a_module_is_written_to_a_folder_too(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64))
    got, report = room.compress(net, bits=4.0, calibration=torch.randn(128, 64), out=tmp_path / "o")
    packed = store.Packed(tmp_path / "o")
    assert torch.equal(packed.decode("0.weight"), got[0].weight) and report.bits < 4.7


@pytest.mark.parametrize(
    ("damage", "error", "word"),
    [
        (lambda d: (d / "config.json").unlink(), BadInput, "no config.json"),
        (lambda d: (d / "config.json").write_text("{"), BadInput, "config.json"),
        (lambda d: (d / "model.safetensors").unlink(), BadInput, "no safetensors"),
        (lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-999]), BadInput, "damaged"),
        (lambda d: _rewrite(d, lambda t: t.pop("model.norm.weight")), BadInput, "lack"),
        (lambda d: _rewrite(d, lambda t: t.update({"model.norm.weight": torch.ones(3)})), BadInput, "shape"),
        (lambda d: _rewrite(d, lambda t: t["lm_head.weight"].__setitem__((3, 5), float("nan"))), BadInput, "NaN"),
        (lambda d: _config(d, quantization_config={"quant_method": "awq"}), BadInput, "quantized already"),
    ],
)  # fmt: skip
def test_a_source_that_cannot_work_ends_in_one_line(damage, error, word: str, tmp_path: Path) -> None:
    source = families.folder("llama", tmp_path / "model")
    damage(source)
    with pytest.raises(error, match=word) as raised:
        room.compress(source, out=tmp_path / "o", bits=4.0, calibration=families.inputs("llama"))
    assert "\n" not in str(raised.value) and not (tmp_path / "o").exists()


def _rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _config(folder: Path, **changes) -> None:
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, **changes}))


@pytest.mark.parametrize(
    ("settings", "error", "word"),
    [
        ({"bits": 0.01}, BadConfig, "at least"),
        ({"bits": 40.0}, BadConfig, "16"),
        ({"recipe": "gptq", "bits": 15.0}, BadConfig, "at most"),
        ({"recipe": "nonsense"}, BadConfig, "nonsense"),
        ({"recipe": "bytes-mix"}, BadConfig, "lossless"),
        ({"calibration": []}, BadInput, "calibration"),
        ({"out": "nowhere/at/all"}, BadInput, "no such folder"),
    ],
)
def test_settings_that_cannot_work_end_in_one_line(settings: dict, error, word: str, tmp_path: Path) -> None:
    source = families.folder("llama", tmp_path / "model")
    given = {"out": tmp_path / "o", "bits": 4.0, "calibration": families.inputs("llama"), **settings}
    with pytest.raises(error, match=word):
        room.compress(source, **given)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("data", "word"), [(b"", "empty"), (b" \n", "empty"), ("Grüße".encode("latin-1"), "UTF-8"), (None, "no such")]
)
def test_calibration_texts_that_cannot_work(data: bytes | None, word: str, tmp_path: Path) -> None:
    source = families.folder("llama", tmp_path / "model")
    text = tmp_path / "text.txt"
    if data is not None:
        text.write_bytes(data)
    with pytest.raises(BadInput, match=word):
        room.compress(source, out=tmp_path / "o", bits=4.0, calibration=[text])


def test_a_text_of_one_token_is_refused() -> None:
    from laconic.sources.weights.calibrate import windows

    with pytest.raises(BadInput, match="1 tokens"):
        windows(torch.tensor([5]), 0, 8, 16)
    assert windows(torch.tensor([5, 6, 7]), 0, 8, 16).tolist() == [[0, 5, 6, 7]]


def test_damaged_output_is_found(tmp_path: Path) -> None:
    out, _ = _compressed("llama", tmp_path)
    file = out / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[store.entry_of(name)][200] ^= 1
    save_file(tensors, file)
    with pytest.raises(CorruptStream):
        store.Packed(out).decode(name)
    _config(out, quantization_config={"quant_method": "laconic", "format": 99})
    with pytest.raises(CorruptStream, match="format 99"):
        store.Packed(out)


def test_a_dry_run_writes_nothing_and_says_what_is_needed(tmp_path: Path) -> None:
    source = families.folder("llama", tmp_path / "model")
    said = room.prepare(source, out=tmp_path / "o", bits=4.0, calibration=families.inputs("llama"))
    assert said.blocks == 2 and said.tokens == 256 and said.parameters > 90_000
    assert said.peak_bytes > 0 and said.seconds > 0 and sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def underestimate(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """Let rates of a network of n values be estimated a tenth of a bit too low, and budgets be met within .02 bits."""
    monkeypatch.setattr(room, "TOLERATED_BYTES", n * 0.02 / 8)
    right = FeedbackTrellis.estimate

    def too_little(self: FeedbackTrellis, x: torch.Tensor, stats: Stats | None = None) -> tuple[float, float]:
        rate, error = right(self, x, stats)
        return rate - 0.1, error

    monkeypatch.setattr(FeedbackTrellis, "estimate", too_little)


def test_what_an_estimate_is_off_by_is_made_good_in_a_network_of_one_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    sizes = [64, 256, 128, 96, 64, 48, 40]
    layers = [torch.nn.Conv2d(a, b, 3, padding=1) for a, b in zip(sizes, sizes[1:], strict=False)]
    net = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    underestimate(monkeypatch, sum(layer.weight.numel() for layer in layers))
    _, report = room.compress(net, bits=3, calibration=torch.randn(8, 64, 4, 4))
    assert abs(report.bits - 3) < 0.02


class Residual(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.linear(x)


class Classifier(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Residual() for _ in range(6))
        self.head = torch.nn.Linear(64, 500)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def test_the_largest_matrix_behind_all_others_is_coded_until_it_meets_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    underestimate(monkeypatch, 6 * 64 * 64 + 64 * 500)
    _, report = room.compress(Classifier(), bits=3, calibration=torch.randn(16, 64))
    assert [r.name for r in report.rows][-1] == "head.weight" and len(report.rows) == 7
    assert abs(report.bits - 3) < 0.02
