"""Caches of the benchmark: block formats byte for byte, names, peers' scripts, processes, rows."""

from __future__ import annotations

import json
import struct
import sys
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laconic.core.errors import BadConfig, BadInput, CodecError, CorruptStream

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from laconic.bench import kv, kv_peers  # noqa: E402
from laconic.bench.kv_blocks import BLOCK, FORMATS, blocks_cache, hadamard, pack, unpack  # noqa: E402
from laconic.bench.kv_caches import maker, parse  # noqa: E402
from laconic.bench.kv_process import STATUS, Job, in_fresh_process  # noqa: E402
from laconic.bench.peers.scripts import kv_caches as script  # noqa: E402
from laconic.bench.peers.scripts.llama_cpp import interleave  # noqa: E402
from laconic.bench.tinystories import load_stories  # noqa: E402
from laconic.sources.kv.evaluate import Settings, evaluate  # noqa: E402
from laconic.sources.kv.recall import Recall, RecallScore  # noqa: E402
from laconic.sources.weights.estimates import Estimate  # noqa: E402

SHAPE = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 256, "vocab_size": 4096,
         "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.3}  # fmt: skip
TEXT = "It was the best of times, it was the worst of times. " * 60
SMALL = Settings(window=48, prefill=32, windows=2, batch=2, buckets=1, noise=False)


def heavy_tails(*shape: int) -> Any:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=g) * torch.randn(*shape, generator=g).exp()
    x.view(-1)[: 2 * BLOCK] = torch.tensor([0.0, 3.0]).repeat_interleave(BLOCK)  # blocks without a range
    return x


class TestBlocks:
    @pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
    def test_bytes_are_ggmls(self, name: str) -> None:
        gguf = pytest.importorskip("gguf", reason="the export extra is not installed")
        kind, x, form = gguf.GGMLQuantizationType[name.upper()], heavy_tails(64, 4 * BLOCK), FORMATS[name]
        codes, head = form.encode(x.unflatten(-1, (-1, BLOCK)))
        mine = torch.cat([head.contiguous().view(torch.uint8), pack(codes, form.bits)], -1)
        assert np.array_equal(mine.flatten(1).numpy(), gguf.quantize(x.numpy(), kind))
        assert mine.shape[-1] == form.block_bytes

    @pytest.mark.parametrize("name", FORMATS)
    def test_decodes_as_ggml(self, name: str) -> None:
        gguf = pytest.importorskip("gguf", reason="the export extra is not installed")
        form, blocks = FORMATS[name], heavy_tails(64, 4, BLOCK)
        codes, head = form.encode(blocks)
        packed = pack(codes, form.bits)
        assert torch.equal(unpack(packed, form.bits), codes)
        mine = form.decode(codes, head).flatten(1).numpy()
        stored = torch.cat([head.contiguous().view(torch.uint8), packed], -1).flatten(1).numpy()
        assert np.allclose(mine, gguf.dequantize(stored, gguf.GGMLQuantizationType[name.upper()]), rtol=1e-6)

    def test_errors_fall_with_bits_and_with_fitted_levels(self) -> None:
        x = torch.randn(500, BLOCK, generator=torch.Generator().manual_seed(1))
        error = {n: float((f.decode(*f.encode(x)) - x).square().mean()) for n, f in FORMATS.items()}
        assert error["iq4_nl"] < 0.9 * error["q4_0"] < 0.008 and error["q4_1"] < error["q4_0"]
        assert error["q8_0"] < error["q5_1"] / 20 < error["q5_0"] / 20 < error["q4_0"] / 60

    @pytest.mark.parametrize("rotate", [False, True])
    def test_a_cache_answers_with_what_it_stores(self, rotate: bool) -> None:
        config = transformers.LlamaConfig(**SHAPE)
        cache = blocks_cache(config, "q8_0", "q4_0", rotate=rotate)
        keys, values = torch.randn(2, 3, 1, 9, 32, generator=torch.Generator().manual_seed(2))
        first = cache.update(keys[:, :, :7], values[:, :, :7], 0)
        assert torch.equal(first[0], keys[:, :, :7]) and cache.get_seq_length() == 7
        k, v = cache.update(keys[:, :, 7:], values[:, :, 7:], 0)
        assert k.shape == keys.shape and 0 < (k - keys).abs().max() < 0.03 < (v - values).abs().max() < 0.6
        assert cache.nbytes == 3 * 9 * (34 + 18)

    def test_hadamard_keeps_lengths(self) -> None:
        assert torch.allclose(hadamard(16) @ hadamard(16).T, torch.eye(16))
        with pytest.raises(BadConfig, match="48"):
            hadamard(48)

    def test_refuses(self) -> None:
        with pytest.raises(BadConfig, match="heads of 16"):
            blocks_cache(transformers.LlamaConfig(**{**SHAPE, "head_dim": 16}), "q4_0")
        with pytest.raises(BadConfig, match="q4_0"):
            blocks_cache(transformers.LlamaConfig(**SHAPE), "q4_O")
        with pytest.raises(BadConfig, match="sliding_attention"):
            blocks_cache(transformers.MistralConfig(**{**SHAPE, "sliding_window": 8}), "q4_0")


class TestNames:
    def test_what_they_say(self) -> None:
        specs = parse("none, auto:3,q8_0/q4_0,iq4_nl+rot,fp8,quanto:4,xquant")
        assert [s.kind for s in specs] == ["none", "ours", "blocks", "blocks", "fp8", "quantized", "ours"]
        assert (specs[1].recipe, specs[1].bits, specs[6].bits) == ("auto", 3.0, None)

    @pytest.mark.parametrize("text", ["", "auto:three", "auto:0", "auto:nan", "quanto:3", "q4_0,q4_0"])
    def test_bad_ones_are_named(self, text: str) -> None:
        with pytest.raises(BadConfig):
            parse(text)

    def test_makes_them(self) -> None:
        config = transformers.LlamaConfig(**SHAPE)
        for spec in parse("none,fp8,q8_0/q4_0,turboquant:3"):
            cache = maker(spec, config)()
            assert cache.get_seq_length() == 0 and len(cache.layers) == 2
        with pytest.raises(BadConfig, match="environment of its own"):
            maker(parse("hqq:2")[0], config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("kv") / "tiny"
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).save_pretrained(where)
    with as_file(files("laconic") / "samples" / "english-llama-7m") as sample:
        transformers.AutoTokenizer.from_pretrained(sample).save_pretrained(where)
    return where


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment of a peer that is this one; the only stock cache that needs no other package is fp8."""
    python = tmp_path / "kv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("LACONIC_PEERS", str(tmp_path))
    monkeypatch.setitem(kv_peers.QUANTIZED, "eight", {"backend": "fp8"})
    return python


class TestPeers:
    def test_there_and_here_are_the_same(self, folder: Path, environment: Path) -> None:
        (there,) = kv_peers.score(folder, {"t": TEXT}, ["eight"], SMALL)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        words = transformers.AutoTokenizer.from_pretrained(folder)
        make = {"eight": maker(parse("fp8")[0], model)}
        (here,) = evaluate(model, words, make, {"t": TEXT}, SMALL).caches
        assert there.bits == here.bits and here.text.kl.value > 0
        assert there.text.kl.value == pytest.approx(here.text.kl.value, rel=1e-3)
        assert type(there.text.kl) is Estimate and there.positions[0].first == 32
        (task,) = kv_peers.recalled(folder, {"t": TEXT}, ["eight"], ["repeats"], 2, 48, 2)
        assert task.caches[0].name == "eight" and task.reference.within and task.n_items == 2

    def test_failures_are_one_line(self, folder: Path, environment: Path) -> None:
        environment.write_text("#!/bin/sh\necho no such tool >&2\nexit 3\n")
        with pytest.raises(CodecError, match="ended with 3: no such tool"):
            kv_peers.score(folder, {"t": TEXT}, ["eight"], SMALL)
        environment.unlink()
        with pytest.raises(BadConfig, match="make peers"):
            kv_peers.score(folder, {"t": TEXT}, ["eight"], SMALL)

    def test_windows_are_quantized_one_by_one_and_read_once(self) -> None:
        calls = []

        def quantize(x: Any, axis: int) -> Any:  # as hqq's axis 0: all is flat before it is grouped
            flat = x.reshape(4, -1)
            scale = flat.abs().amax(0, keepdim=True) / 2 + 1e-9
            return (flat / scale).round(), scale, x.shape

        def dequantize(q: Any) -> Any:
            calls.append(1)
            return (q[0] * q[1]).reshape(q[2])

        x = torch.randn(3, 2, 4, 8, generator=torch.Generator().manual_seed(0))
        store, read = script._apart(quantize, dequantize)
        stored = store(x, 0)
        alone = torch.cat([dequantize(quantize(w, 0)) for w in x.split(1)])
        assert torch.equal(read(stored), alone) and not torch.equal(dequantize(quantize(x, 0)), alone)
        n = len(calls)
        assert read(stored) is read(stored) and len(calls) == n
        others = [store(x + i, 0) for i in range(2)]
        assert [torch.equal(read(o), read(store(x + i, 0))) for i, o in enumerate(others)] == [True, True]


@pytest.mark.skipif(not STATUS.exists(), reason="memory of a process is read from /proc")
class TestProcess:
    def test_memory_is_the_processs(self) -> None:
        plain, eight = (in_fresh_process(Job(c, 8192, layers=2, threads=1)) for c in ("none", "fp8"))
        assert plain.n_values == eight.n_values == 2 * 2 * 8 * 8192 * 64
        assert plain.said == 2 * plain.n_values and plain.seconds is None
        assert 0.9 * plain.said < plain.held < 1.2 * plain.said <= 1.3 * plain.peak
        assert 0.4 < eight.held / plain.held < 0.7

    def test_failures_are_one_line(self) -> None:
        with pytest.raises(CodecError, match="nosuch at 64 tokens: .*nosuch"):
            in_fresh_process(Job("nosuch", 64, layers=1))
        with pytest.raises(BadConfig, match="1 or more"):
            Job("none", 0)


class TestStories:
    def test_the_model_is_that_of_the_file(self, tmp_path: Path) -> None:
        """One layer, written out: rotary pairs lie beside each other in the file."""
        rng = np.random.default_rng(0)
        dim, hidden, heads, kv_heads, vocab, length = 16, 12, 2, 1, 20, 8
        head = dim // heads
        shapes = [(vocab, dim), (1, dim), (1, dim, dim), (1, kv_heads * head, dim), (1, kv_heads * head, dim), (1, dim, dim),
                  (1, dim), (1, hidden, dim), (1, dim, hidden), (1, hidden, dim), (dim,), (2, length, head // 2)]  # fmt: skip
        e, na, wq, wk, wv, wo, nf, w1, w2, w3, no, rope = (rng.standard_normal(s).astype("<f4") / 2 for s in shapes)
        data = struct.pack("<7i", dim, hidden, 1, heads, kv_heads, vocab, length)
        data += b"".join(a.tobytes() for a in (e, na, wq, wk, wv, wo, nf, w1, w2, w3, no, rope))
        (tmp_path / "stories260K.bin").write_bytes(data)
        pieces = [b"<unk>", b"<s>", b"</s>", *(bytes([i]) for i in range(256)), b"ab", b"bc", b"abc"]
        scores = [0.0] * 259 + [1.0, 2.0, 3.0]
        packed = b"".join(struct.pack("<fi", s, len(p)) + p for s, p in zip(scores, pieces, strict=True))
        (tmp_path / "tok512.bin").write_bytes(struct.pack("<i", 5) + packed)
        model, words = load_stories(tmp_path)

        def norm(x: Any, w: Any) -> Any:
            return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w

        def turn(x: Any) -> Any:  # (n, heads, head), pairs (0, 1), (2, 3), …
            angle = np.arange(len(x))[:, None] * 10000.0 ** (-np.arange(0, head, 2) / head)
            c, s = np.cos(angle)[:, None], np.sin(angle)[:, None]
            a, b = x[..., 0::2], x[..., 1::2]
            return np.stack([a * c - b * s, a * s + b * c], -1).reshape(x.shape)

        ids = np.array([1, 5, 9, 3, 3, 12])
        n, x = len(ids), e[ids]
        y = norm(x, na[0])
        q, k = turn((y @ wq[0].T).reshape(n, heads, head)), turn((y @ wk[0].T).reshape(n, kv_heads, head))
        v = (y @ wv[0].T).reshape(n, kv_heads, head)
        scores_ = np.einsum("ihd,jd->hij", q, k[:, 0]) / np.sqrt(head) + np.triu(np.full((n, n), -np.inf), 1)
        p = np.exp(scores_ - scores_.max(-1, keepdims=True))
        x = x + np.einsum("hij,jd->ihd", p / p.sum(-1, keepdims=True), v[:, 0]).reshape(n, dim) @ wo[0].T
        y = norm(x, nf[0])
        gate = y @ w1[0].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w3[0].T)) @ w2[0].T
        with torch.inference_mode():
            logits = model(input_ids=torch.from_numpy(ids)[None]).logits[0].numpy()
        assert np.allclose(logits, norm(x, no) @ e.T, atol=1e-4)

        assert words("abcb")["input_ids"] == [261, ord("b") + 3] and words.decode([261, ord("b") + 3]) == "abcb"
        assert words(["ab", "é"])["input_ids"] == [[259], [0xC3 + 3, 0xA9 + 3]] and words.decode([0xC6, 0xAC]) == "é"

    def test_damage_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match="stories260K.bin is not there"):
            load_stories(tmp_path)
        (tmp_path / "stories260K.bin").write_bytes(struct.pack("<7i", 16, 12, 1, 2, 1, 20, 8) + bytes(99))
        with pytest.raises(CorruptStream, match="the file has 127"):
            load_stories(tmp_path)

    def test_rows_of_heads_are_split_as_llama_cpp_joins_them(self) -> None:
        w = np.arange(32.0).reshape(8, 4)
        from laconic.bench.tinystories import split_halves

        assert np.array_equal(split_halves(interleave(w, 2), 2), w)


class TestRows:
    def test_tasks_that_are_done_have_goals(self) -> None:
        def score(name: str, nats: float, exact: float) -> RecallScore:
            e, x, c = (
                Estimate(nats, nats - 0.1, nats + 0.1),
                Estimate(exact, exact - 0.1, exact + 0.1),
                Estimate(0.0, 0, 0),
            )
            return RecallScore(name, 3.0, e, x, c, c, True)

        gain = Estimate(1.0, 0.9, 1.1)
        ours, peer = score("auto", 2.05, 0.5), score("q4_0", 3.0, 0.2)
        task = Recall("repeats", 9, 9, 99, gain, gain, True, score("none", 2.0, 0.55), (ours, peer))
        rows = list(kv._recall_rows(task))
        assert [r.holds for r in rows if r.target] == [True, True]
        worse = Recall("repeats", 9, 9, 99, gain, gain, True, score("none", 1.9, 0.65), (ours, peer))
        assert [r.holds for r in kv._recall_rows(worse) if r.target] == [False, False]
        not_done = Recall("needle", 9, 9, 99, gain, Estimate(0.0, -1, 1), False, score("none", 2.0, 0.5), (ours,))
        assert [r.target for r in kv._recall_rows(not_done)] == [None]
        assert json.dumps(task.as_json())

    def test_ours_are_held_against_the_peers_at_their_rate(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """`auto` stands for a block format here: its place on the peers' front is known."""
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        words = transformers.AutoTokenizer.from_pretrained(folder)
        monkeypatch.setattr(kv, "TARGETS", {4.5: (4.5, 1.0)})
        plain = kv.maker
        stand_in = parse("q4_0")[0]
        monkeypatch.setattr(kv, "maker", lambda s, m, **k: plain(stand_in if s.kind == "ours" else s, m))
        rows = list(kv._beside("", model, words, {"t": TEXT}, TEXT, [], ("q4_0", "q8_0"), SMALL))
        (over,) = [r for r in rows if "over the best" in r.name]
        assert over.value == pytest.approx(1.0) and over.holds
        assert {r.name.split(",")[0] for r in rows} == {"q4_0", "q8_0", "auto"}
