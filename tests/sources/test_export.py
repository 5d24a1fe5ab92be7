"""Exports hold the same numbers: read back by the formats' own libraries, without laconic."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from laconic import weights  # noqa: E402
from laconic.core.errors import BadConfig, BadInput  # noqa: E402
from laconic.sources.weights import store  # noqa: E402
from laconic.sources.weights.compress import compress, recipe_of  # noqa: E402

CONFIG = {"vocab_size": 300, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "num_attention_heads": 4,
          "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
IDS = torch.tensor([[3, 14, 15, 9, 2, 6, 5, 200, 299]])


def _byte_level(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    words |= {"he": 256, "Ġt": 257}
    t = Tokenizer(models.BPE(words, [("h", "e"), ("Ġ", "t")]))
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    t.add_special_tokens(["<end>"])
    t.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "in"
    torch.manual_seed(3)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG, tie_word_embeddings=True, dtype="float32"))
    model.save_pretrained(folder)
    _byte_level(folder)
    return folder


@pytest.fixture(scope="module")
def compressed(original: Path):
    made: dict[str, Path] = {}

    def make(recipe: str, **settings: object) -> Path:
        key = f"{recipe}{sorted(settings.items())}"
        if key not in made:
            out = original.parent / f"out{len(made)}"
            compress(original, out=out, recipe=recipe_of(recipe, **settings), threads=1)
            made[key] = out
        return made[key]

    return make


GGUF = [("k-quant", {"bits": 2}, "Q2_K"), ("k-quant", {"bits": 4}, "Q4_K"), ("k-quant", {"bits": 5}, "Q5_K"),
        ("mr-gptq", {"format": "mxfp4", "rotation": 0}, "MXFP4"), ("gptq", {"bits": 4, "group": 32}, "Q4_1"),
        ("gptq", {"bits": 5, "group": 32}, "Q5_1")]  # fmt: skip


@pytest.mark.parametrize(("recipe", "settings", "kind"), GGUF)
def test_gguf_blocks_decode_to_what_the_packets_do(
    recipe: str, settings: dict, kind: str, compressed, tmp_path: Path
) -> None:
    gguf = pytest.importorskip("gguf")
    out = compressed(recipe, **settings)
    said = weights.export(out, tmp_path / "model.gguf", to="gguf")
    opened = store.Packed(out)
    assert set(said.repacked) == {kind} and len(said.repacked[kind]) == len(opened) and not said.dense
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    for name in opened:
        tensor = tensors[names.get_name(name, try_suffixes=(".weight",))]
        got, want = gguf.quants.dequantize(tensor.data, tensor.tensor_type), opened.decode(name).numpy()
        for part, heads in (("q_proj", 4), ("k_proj", 2)):
            if part in name:  # llama.cpp rotates neighbours, transformers halves
                want = want.reshape(heads, 2, -1, 256).swapaxes(1, 2).reshape(want.shape)
        if name in said.rounded:
            assert np.abs(got - want).max() <= 2.0**-9 * np.abs(want).max(), name
        else:
            assert np.array_equal(got, want), name
    assert (len(said.rounded) == 0) == (kind in ("Q2_K", "Q4_K", "MXFP4"))


def test_transformers_reads_the_gguf_file_with_its_tokenizer(compressed, original: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    out = compressed("k-quant", bits=4)
    weights.export(out, tmp_path / "g", to="gguf")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "g", gguf_file="model.gguf", dtype=torch.float32
    )
    with torch.inference_mode():
        want = weights.load(out, packed=False)(input_ids=IDS).logits
        assert float((model(input_ids=IDS).logits - want).abs().max()) <= 1e-4 * float(want.abs().max())
    first = transformers.AutoTokenizer.from_pretrained(original)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "g", gguf_file="model.gguf")
    text = "the theme, here"
    assert again(text, add_special_tokens=False).input_ids == first(text, add_special_tokens=False).input_ids


TENSORS = [("gptq", {"bits": 4, "group": 32}, "pack-quantized"), ("gptq", {"bits": 3, "group": 0}, "pack-quantized"),
           ("ectcq", {"bits": 3.0}, "pack-quantized"), ("gptq-nvfp4", {"rotation": 0}, "nvfp4-pack-quantized"),
           ("mr-gptq", {"format": "mxfp4", "rotation": 0}, "mxfp4-pack-quantized")]  # fmt: skip


@pytest.mark.parametrize(("recipe", "settings", "kind"), TENSORS)
def test_compressed_tensors_folders_give_the_same_logits(
    recipe: str, settings: dict, kind: str, compressed, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors")
    out = compressed(recipe, **settings)
    said = weights.export(out, tmp_path / "ct", to="compressed-tensors")
    assert len(said.repacked[kind]) == 7 and said.dense == ["model.embed_tokens.weight"]
    model, found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ct", output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    with torch.inference_mode():
        want = weights.load(out, packed=False)(input_ids=IDS).logits
        got = model(input_ids=IDS).logits
    exact = kind != "pack-quantized"  # integers are multiplied by their step in half precision
    assert float((got - want).abs().max()) <= (1e-6 if exact else 2e-3) * float(want.abs().max())


def test_the_exported_folder_opens_where_laconic_is_not(compressed, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    out = compressed("gptq-nvfp4", rotation=0)
    weights.export(out, tmp_path / "ct", to="compressed-tensors")
    code = (
        "import sys; sys.modules['laconic'] = None\nimport torch, transformers\n"
        f"m = transformers.AutoModelForCausalLM.from_pretrained({str(tmp_path / 'ct')!r})\n"
        f"print(float(m(input_ids=torch.tensor({IDS.tolist()})).logits.abs().sum()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    with torch.inference_mode():
        want = float(weights.load(out, packed=False)(input_ids=IDS).logits.abs().sum())
    assert float(done.stdout.split()[-1]) == pytest.approx(want, rel=1e-5), done.stderr[-500:]


@pytest.mark.parametrize(
    ("recipe", "settings", "to"),
    [("rsq", {"bits": 4}, "compressed-tensors"), ("k-quant", {"bits": 4}, "compressed-tensors"), ("ectcq", {"bits": 3.0}, "gguf"),
     ("gptq", {"bits": 3, "group": 64}, "gguf"), ("gptq-nvfp4", {"rotation": 0}, "gguf")],
)  # fmt: skip
def test_grids_that_a_format_lacks_are_refused_and_nothing_is_left(
    recipe: str, settings: dict, to: str, compressed, tmp_path: Path
) -> None:
    with pytest.raises(BadConfig, match=r"is none of .* fit"):
        weights.export(compressed(recipe, **settings), tmp_path / "x", to=to)
    assert not list(tmp_path.iterdir())


def test_unknown_formats_models_and_existing_targets_are_refused(compressed, tmp_path: Path) -> None:
    out = compressed("k-quant", bits=4)
    with pytest.raises(BadConfig, match="gguf"):
        weights.export(out, tmp_path / "x", to="ggfu")
    with pytest.raises(FileExistsError):
        weights.export(out, tmp_path, to="gguf")
    other = tmp_path / "gpt"
    other.mkdir()
    for p in out.iterdir():
        (other / p.name).write_bytes(p.read_bytes())
    config = json.loads((out / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(BadInput, match="GPT2LMHeadModel"):
        weights.export(other, tmp_path / "y", to="gguf")


def test_the_command_says_what_it_wrote(compressed, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from laconic.cli.main import app

    pytest.importorskip("gguf")
    out = compressed("k-quant", bits=4)
    done = CliRunner().invoke(app, ["export", str(out), "--to", "gguf", "-o", str(tmp_path / "m.gguf")])
    assert done.exit_code == 0 and "8 matrices as Q4_K, 0 dense" in done.output
    assert (tmp_path / "m.gguf").read_bytes()[:4] == b"GGUF"
