"""Compressed folders as models: what is loaded computes what the packets decode to, and takes the memory it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import laconic  # noqa: E402
from laconic import weights  # noqa: E402
from laconic.core.errors import BadInput, CodecError, CorruptStream  # noqa: E402
from laconic.core.packet import levels  # noqa: E402
from laconic.core.stage import Levels  # noqa: E402
from laconic.sources.weights import store  # noqa: E402
from laconic.sources.weights.compress import compress, recipe_of  # noqa: E402
from laconic.sources.weights.runtime import CodedEmbedding, CodedLinear, CodedStack, footprint  # noqa: E402

IDS = torch.tensor([[3, 14, 15, 9, 2, 6, 5]])
SMALL = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 64}  # fmt: skip


def _llama(tied: bool = True, **more: object) -> object:
    return transformers.LlamaConfig(**SMALL, num_key_value_heads=2, tie_word_embeddings=tied, **more)


CONFIGS = {
    "llama-tied": lambda: ("AutoModelForCausalLM", _llama()),
    "llama-untied-bias": lambda: ("AutoModelForCausalLM", _llama(False, attention_bias=True)),
    "gpt2": lambda: (
        "AutoModelForCausalLM",
        transformers.GPT2Config(vocab_size=128, n_positions=64, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0),
    ),
    "mixtral": lambda: (
        "AutoModelForCausalLM",
        transformers.MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2),
    ),
    "gemma2": lambda: ("AutoModelForCausalLM", transformers.Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=16)),
    "mamba": lambda: (
        "AutoModelForCausalLM",
        transformers.MambaConfig(vocab_size=128, hidden_size=64, num_hidden_layers=2, state_size=8),
    ),
    "bert": lambda: ("AutoModelForMaskedLM", transformers.BertConfig(**SMALL)),
    "vit": lambda: (
        "AutoModelForImageClassification",
        transformers.ViTConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, image_size=16,
                               patch_size=4, num_labels=40),
    ),
}  # fmt: skip
_MADE: dict[tuple[str, str], Path] = {}


def _original(name: str) -> object:
    torch.manual_seed(7)
    cls, config = CONFIGS[name]()
    model = getattr(transformers, cls).from_config(config).eval()
    with torch.no_grad():
        for key, p in model.named_parameters():
            if key.endswith("bias"):
                p.normal_(std=0.1)
    return model


def _save(model: object, folder: Path) -> None:
    """As it is in memory: transformers would save experts one by one."""
    from safetensors.torch import save_file

    folder.mkdir()
    model.config.architectures = [type(model).__name__]
    model.config.dtype = "float32"
    model.config.save_pretrained(folder)
    seen, state = set(), {}
    for key, t in model.state_dict().items():
        if t.data_ptr() not in seen:
            seen.add(t.data_ptr())
            state[key] = t.clone()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    def make(name: str, recipe: str = "gptq", **settings: object) -> Path:
        key = (name, f"{recipe}{settings}")
        if key not in _MADE:
            base = tmp_path_factory.mktemp("models")
            _save(_original(name), base / "in")
            compress(base / "in", out=base / "out", recipe=recipe_of(recipe, **settings), threads=1)
            _MADE[key] = base / "out"
        return _MADE[key]

    yield make
    _MADE.clear()


def _inputs(name: str) -> dict[str, object]:
    torch.manual_seed(1)
    return {"pixel_values": torch.randn(2, 3, 16, 16)} if name == "vit" else {"input_ids": IDS}


def _from_packets(name: str, folder: Path) -> object:
    """The original with each matrix replaced by what its packet decodes to, without any of the loading code."""
    model, opened = _original(name), store.Packed(folder)
    owners = dict(model.named_parameters())
    with torch.no_grad():
        for matrix in opened:
            key, _, expert = matrix.partition("#")
            p = owners[key][int(expert)] if expert else owners[key]
            w = opened.decode(matrix)
            p.copy_(w.T if name == "gpt2" and p.ndim == 2 and ".c_" in key else w.reshape(p.shape))
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_computes_what_its_packets_decode_to(name: str, folder) -> None:
    out = folder(name)
    auto = getattr(transformers, CONFIGS[name]()[0])
    model, said = auto.from_pretrained(out, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"] and not said["mismatched_keys"]
    dense = weights.load(out, packed=False)
    with torch.inference_mode():
        want = _from_packets(name, out)(**_inputs(name)).logits
        assert torch.equal(dense(**_inputs(name)).logits, want)
        got = model(**_inputs(name)).logits
    assert float((got - want).abs().max()) < 2e-3 * float(want.abs().max())
    assert any(isinstance(m, CodedLinear) for m in model.modules())
    assert isinstance(getattr(model, "laconic_forms", None), list)
    assert footprint(model).nbytes < footprint(dense).nbytes


def test_tied_experts_and_embeddings_run_on_codes(folder) -> None:
    tied = weights.load(folder("llama-tied"))
    assert isinstance(tied.lm_head, CodedLinear) and isinstance(tied.model.embed_tokens, CodedEmbedding)
    assert tied.lm_head.matrix.codes.data_ptr() == tied.model.embed_tokens.matrix.codes.data_ptr()
    mixtral = weights.load(folder("mixtral"))
    stacks = [m for m in mixtral.modules() if isinstance(m, CodedStack)]
    assert sorted(s.shape for s in stacks) == 2 * [(4, 64, 96)] + 2 * [(4, 192, 64)]


@pytest.mark.parametrize(
    ("recipe", "settings", "form"),
    [("ectcq", {"bits": 3.0}, "packed"), ("auto", {"bits": 3.0}, "packed"), ("rsq", {"bits": 4}, "packed"),
     ("gptq-nvfp4", {}, "packed"), ("k-quant", {"bits": 4}, "packed"), ("spqr", {}, "dense")],
)  # fmt: skip
def test_recipes_run_in_their_form_and_equal_their_packets(recipe: str, settings: dict, form: str, folder) -> None:
    out = folder("llama-tied", recipe, **settings)
    model, opened = weights.load(out), store.Packed(out)
    forms = {f.name: f for f in footprint(model).forms}
    assert {forms[f"model.layers.0.{k}.weight"].form for k in ("self_attn.q_proj", "mlp.up_proj")} == {form}
    assert ("model.layers.0.mlp.up_proj.weight: runtime form: dense" in footprint(model).describe()) == (
        form == "dense"
    )
    for name in opened:
        w = opened.decode(name)
        got = model.get_submodule(name.removesuffix(".weight")).weight
        assert got.shape == w.shape and float((got - w).abs().max()) <= 1e-6 * float(w.abs().max()), name
    with torch.inference_mode():
        want = weights.load(out, packed=False)(input_ids=IDS).logits
        assert float((model(input_ids=IDS).logits - want).abs().max()) < 2e-3 * float(want.abs().max())


def test_generate_runs_on_codes_and_saves_the_same_packets(folder, tmp_path: Path) -> None:
    out = folder("llama-untied-bias")
    model = weights.load(out)
    ids = model.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert ids.shape == (1, IDS.shape[1] + 4)
    model.save_pretrained(tmp_path / "again")
    first, again = store.Packed(out), store.Packed(tmp_path / "again")
    assert set(first.source) == set(again.source) and first.said == again.said
    assert all(first[k] == again[k] for k in first)
    assert all(torch.equal(first.source[k], again.source[k]) for k in first.kept)


def test_a_headless_model_reads_what_is_below_the_head(folder) -> None:
    out = folder("gpt2")
    model, said = transformers.AutoModel.from_pretrained(out, output_loading_info=True)
    assert not said["missing_keys"]
    with torch.inference_mode():
        want = weights.load(out).transformer(input_ids=IDS).last_hidden_state
        assert torch.equal(model(input_ids=IDS).last_hidden_state, want)


def test_the_dtype_is_the_one_asked_for(folder) -> None:
    model = weights.load(folder("llama-tied"), dtype=torch.bfloat16)
    assert model.model.norm.weight.dtype == torch.bfloat16
    with torch.inference_mode():
        assert model(input_ids=IDS).logits.dtype == torch.bfloat16


def _tampered(out: Path, to: Path, change) -> Path:
    """A copy of the folder whose tensors went through `change`."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(out, to)
    state = load_file(to / "model.safetensors")
    change(state)
    save_file(state, to / "model.safetensors", metadata={"format": "pt"})
    return to


KEY = "model.layers.1.mlp.up_proj.weight_packet"


def _flip(state: dict) -> None:
    state[KEY] = state[KEY].clone()
    state[KEY][len(state[KEY]) // 2] ^= 16


def _cut(state: dict) -> None:
    state[KEY] = state[KEY][:-9].clone()


def _swap(state: dict) -> None:
    state[KEY] = state["model.layers.1.mlp.down_proj.weight_packet"].clone()


def _drop(state: dict) -> None:
    del state[KEY]


@pytest.mark.parametrize("change", [_flip, _cut, _swap, _drop])
def test_damage_is_named_and_never_loaded(change, folder, tmp_path: Path) -> None:
    bad = _tampered(folder("llama-tied"), tmp_path / "bad", change)
    with pytest.raises(CorruptStream, match="up_proj"):
        weights.load(bad)


def test_folders_that_laconic_did_not_make_are_refused(folder, tmp_path: Path) -> None:
    _save(_original("llama-tied"), tmp_path / "plain")
    with pytest.raises(BadInput, match="not made by laconic"):
        weights.load(tmp_path / "plain")
    with pytest.raises(CodecError):
        weights.load(tmp_path / "nothing")


def test_a_module_of_ones_own_is_filled(folder) -> None:
    out = folder("llama-untied-bias")
    model = weights.load(out, into=_original("llama-untied-bias"))
    with torch.inference_mode():
        assert torch.equal(model(input_ids=IDS).logits, weights.load(out)(input_ids=IDS).logits)
    with pytest.raises(BadInput, match="has no such"):
        weights.load(out, into=torch.nn.Linear(64, 64))


def test_import_laconic_alone_lets_transformers_open_the_folder(folder) -> None:
    """Whichever of the two comes first."""
    load = (
        f"m = transformers.AutoModelForCausalLM.from_pretrained({str(folder('llama-tied'))!r}); print(type(m.lm_head))"
    )
    late = "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING; print(AUTO_QUANTIZER_MAPPING['laconic'])"
    codes = [f"import laconic, transformers; {load}", f"import transformers.quantizers.auto, laconic; {late}"]
    runs = [
        subprocess.Popen([sys.executable, "-c", c], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for c in codes
    ]
    for run, want in zip(runs, ("CodedLinear", "LaconicQuantizer"), strict=True):
        out, err = run.communicate(timeout=200)
        assert want in out, err[-800:]


def test_import_laconic_brings_neither_torch_nor_transformers() -> None:
    code = "import sys, laconic; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "[]", done.stderr
    assert laconic.weights is weights


def test_long_tails_of_levels_do_not_widen_the_codes_of_all() -> None:
    rng = np.random.default_rng(0)
    level = np.rint(rng.normal(0, 3, (64, 512))).astype(np.int32)
    level[5, [7, 300]], level[40, 9] = (90, -1000), 200
    step, scale = rng.uniform(0.5, 2, (64, 4)).astype(np.float32), rng.uniform(0.5, 2, 512).astype(np.float32)
    layer = CodedLinear.of(Levels(level, step, 128, column_scale=scale), None, torch.float32)
    want = level * np.repeat(step, 128, 1) * scale
    assert np.allclose(layer.dequantize().numpy(), want, rtol=1e-6, atol=0)
    assert "5-bit levels" in layer.describe() and "3 outliers" in layer.describe()


def test_the_form_of_levels_decodes_as_the_packet_does() -> None:
    torch.manual_seed(2)
    x = torch.randn(48, 256) * torch.rand(48, 1)
    for name, settings in (
        ("gptq", {"group": 0}),
        ("mr-gptq", {}),
        ("mr-gptq", {"format": "nvfp4"}),
        ("k-quant", {"bits": 2}),
    ):
        packet = laconic.codec(name, **settings).fit(x).encode(x)
        found, want = levels(packet), laconic.decode(packet)
        assert found is not None
        layer = CodedLinear.of(found, None, torch.float32)
        assert float((layer.dequantize() - want).abs().max()) <= 1e-6 * float(want.abs().max()), name
        v = torch.randn(3, 256)
        assert torch.allclose(layer(v), v @ want.T, rtol=1e-3, atol=2e-3 * float((v @ want.T).abs().max())), name
    assert levels(laconic.codec("spqr").fit(x).encode(x)) is None
