"""The judge of language models: what it reads, what it computes, what it refuses."""

from __future__ import annotations

import json
import math
import zipfile
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laconic.core.errors import BadConfig, BadInput
from laconic.measure import paired_bootstrap
from laconic.sources.weights.estimates import Resampled, share
from laconic.sources.weights.items import Answers, Choice, Pair, Sentences, log_probs, read_choices, read_pairs
from laconic.sources.weights.outcomes import score_choices, score_pairs
from laconic.sources.weights.reading import Reader, read_text, spread, text_files

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from laconic.sources.weights import contestants  # noqa: E402
from laconic.sources.weights.contestants import Contestant, enter, weight_bytes  # noqa: E402
from laconic.sources.weights.judge import Settings, evaluate, judge  # noqa: E402

TEXT = "In the beginning there was a café — and words, words, words. " * 12
SMALL = Settings(window=33, windows=8, pairs=4, choices=8)


def tiny(vocabulary: int = 4096, seed: int = 0) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128, bos_token_id=0, eos_token_id=1, tie_word_embeddings=True,
        initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(config).float().eval()


def disturbed(module: Any, size: float = 0.02) -> Any:
    import copy

    twin = copy.deepcopy(module)
    torch.manual_seed(7)
    with torch.no_grad():
        for p in twin.parameters():
            p += size * p.std() * torch.randn_like(p)
    return twin


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    with as_file(files("laconic") / "samples" / "english-llama-7m") as folder:
        return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def reader(tokenizer: Any) -> Reader:
    return Reader.of(tokenizer)


@pytest.fixture(scope="module")
def folders(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model, and the same disturbed, as folders."""
    where, module = tmp_path_factory.mktemp("models"), tiny()
    for name, m in (("reference", module), ("worse", disturbed(module))):
        m.save_pretrained(where / name)
        tokenizer.save_pretrained(where / name)
    return {name: where / name for name in ("reference", "worse")}


class TestEstimates:
    def test_the_interval_is_scipys(self) -> None:
        rng = np.random.default_rng(1)
        w = rng.integers(1, 9, 80).astype(float)
        a = rng.exponential(size=80)
        mine = Resampled.of(n_resamples=9999, total=a * w, weight=w).estimate(share("total", "weight"))
        theirs = paired_bootstrap(a, np.zeros(80), weights=w)
        assert mine.value == pytest.approx(theirs.difference)
        width = theirs.high - theirs.low
        assert abs(mine.low - theirs.low) < 0.04 * width and abs(mine.high - theirs.high) < 0.04 * width

    def test_pairing_takes_the_common_spread_out(self) -> None:
        rng = np.random.default_rng(2)
        easy = 10 * rng.standard_normal(60)
        drawn = Resampled.of(a=easy + 0.1, b=easy, n=np.ones(60))
        apart, together = drawn.estimate(share("a", "n")), drawn.estimate(lambda s: (s["a"] - s["b"]) / s["n"])
        assert together.high - together.low < 1e-9 < 1 < apart.high - apart.low

    def test_one_item_has_no_interval(self) -> None:
        one = Resampled.of(a=[3.0], n=[2.0]).estimate(share("a", "n"))
        assert (one.value, one.low, one.high) == (1.5, None, None)

    def test_nothing_or_nan_is_refused(self) -> None:
        for column in ([], [1.0, np.nan]):
            with pytest.raises(BadInput, match="finite"):
                Resampled.of(a=column)


class TestReading:
    @pytest.mark.parametrize("text", [TEXT, "naïve 🙂🙂🙂 日本語のテキスト " * 9])
    def test_windows_hold_every_byte_once(self, reader: Reader, text: str) -> None:
        while len(ids := reader.encode([text])[0]) % 7:
            text += " a"
        cut = reader.windows(text, 1 + 7)
        assert [w.ids[0] for w in cut] == [reader.prefix] * len(cut)
        assert np.concatenate([w.ids[1:] for w in cut]).tolist() == ids
        assert sum(w.n_bytes for w in cut) == len(text.encode())

    def test_short_texts_are_short_windows(self, reader: Reader) -> None:
        for text in ("a", "the old house"):
            (window,) = reader.windows(text, 512)
            assert window.n_bytes == len(text) and len(window.ids) == 1 + len(reader.encode([text])[0])

    def test_a_tokenizer_without_offsets(self, reader: Reader) -> None:
        class Slow:
            is_fast, bos_token_id, eos_token_id = False, None, 7

            def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
                return {"input_ids": [ord(c) for c in text]}

            def decode(self, ids: Any) -> str:
                return "".join(map(chr, ids))

        cut = Reader.of(Slow()).windows("aébcd", 3)
        assert [(w.ids.tolist(), w.n_bytes) for w in cut] == [([7, 97, 233], 3), ([7, 98, 99], 2)]

    def test_refuses(self, reader: Reader, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match="poem is empty"):
            reader.windows("", 8, "poem")
        with pytest.raises(BadConfig, match="window of 1"):
            reader.windows("a b", 1)
        (tmp_path / "t").write_bytes(b"caf\xe9 au lait")
        with pytest.raises(BadInput, match="not UTF-8: byte 0xe9 at offset 3"):
            read_text(tmp_path / "t")
        (tmp_path / "u").write_bytes("hello".encode("utf-16"))
        with pytest.raises(BadInput, match="UTF-16"):
            read_text(tmp_path / "u")
        with pytest.raises(BadInput, match="no .txt"):
            text_files(tmp_path)

    def test_spread_is_even(self) -> None:
        assert spread(range(10), 4) == [0, 2, 5, 7] and spread(range(3), 9) == [0, 1, 2]


def bbq_line(**changes: Any) -> dict[str, Any]:
    line = {
        "question_index": "1", "question_polarity": "neg", "context_condition": "ambig", "category": "Age",
        "answer_info": {"ans0": ["grandfather", "old"], "ans1": ["grandson", "nonOld"], "ans2": ["Unsure", "unknown"]},
        "additional_metadata": {"stereotyped_groups": ["old"]}, "context": "Two men came.", "question": "Who forgot?",
        "ans0": "The grandfather", "ans1": "The grandson", "ans2": "Can't tell", "label": 2,
    }  # fmt: skip
    return line | changes


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


class TestItems:
    def test_pairs_from_a_zip_with_shadows(self, tmp_path: Path) -> None:
        line = {"sentence_good": "He is.", "sentence_bad": "He are.", "UID": "verbs", "linguistics_term": "agreement"}
        with zipfile.ZipFile(tmp_path / "b.zip", "w") as z:
            z.writestr("data/verbs.jsonl", "\n".join(json.dumps(line) for _ in range(5)))
            z.writestr("__MACOSX/data/._verbs.jsonl", b"\0\5shadow")
        assert read_pairs(tmp_path / "b.zip", 3) == [Pair("verbs", "agreement", "He is.", "He are.")] * 3

    def test_what_a_biased_answer_is(self, tmp_path: Path) -> None:
        lines = [bbq_line(), bbq_line(question_polarity="nonneg"),
                 bbq_line(additional_metadata={"stereotyped_groups": ["young"]})]  # fmt: skip
        found = read_choices(write_lines(tmp_path / "Age.jsonl", lines), 9)
        assert [c.biased for c in found] == [0, 1, None] and {c.unknown for c in found} == {2}

    def test_the_sample_is_of_the_items_not_of_their_order(self, tmp_path: Path) -> None:
        lines = [bbq_line(context=f"{i} men came.") for i in range(40)]
        some = read_choices(write_lines(tmp_path / "a.jsonl", lines), 10)
        same = read_choices(write_lines(tmp_path / "b.jsonl", lines[::-1]), 10)
        assert len(some) == 10 and {c.prompt for c in some} == {c.prompt for c in same}
        assert [c.prompt for c in some] != [line["context"] + " Who forgot?" for line in lines[:10]]

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"", "no pairs"), (b"{}", "t.jsonl:1: sentence_good is None"), (b"\n[1]", "t.jsonl:2 is no JSON object"),
            (b"{\xff", "t.jsonl:1 is no JSON object"),
        ],
    )  # fmt: skip
    def test_bad_files_are_named(self, tmp_path: Path, content: bytes, says: str) -> None:
        (tmp_path / "t.jsonl").write_bytes(content)
        with pytest.raises(BadInput, match=says):
            read_pairs(tmp_path / "t.jsonl", 3)

    def test_bad_choices_and_zips(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match="label 3"):
            read_choices(write_lines(tmp_path / "t.jsonl", [bbq_line(label=3)]), 1)
        (tmp_path / "t.zip").write_bytes(b"PK no")
        with pytest.raises(BadInput, match="damaged zip"):
            read_pairs(tmp_path / "t.zip", 3)

    def test_batches_do_not_change_scores(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, rng, told = Contestant("m", tiny()), np.random.default_rng(0), []
        sequences = [rng.integers(2, 4096, n).tolist() for n in (3, 17, 9, 2, 30)]
        starts = [1, 5, 1, 1, 29]
        together = log_probs(model, sequences, starts, 4096, told.append)
        assert sum(told) == sum(map(len, sequences))
        with torch.no_grad():
            for ids, start, total in zip(sequences, starts, together, strict=True):
                alone = torch.log_softmax(model.module(torch.tensor([ids])).logits[0].double(), -1)
                right = sum(float(alone[i - 1, ids[i]]) for i in range(start, len(ids)))
                assert total == pytest.approx(right, abs=1e-3)
        monkeypatch.setattr("laconic.sources.weights.items.MOST_TOKENS", 1)
        one_by_one = log_probs(model, sequences, starts, 4096, lambda n: None)
        np.testing.assert_allclose(one_by_one, together, atol=1e-3)

    def test_answers_begin_behind_their_question(self, reader: Reader) -> None:
        choice = Choice("Age", "Age/1", "Two men came. Who forgot?", ("The old man", "Can't tell"), 1, True, 0, 1)
        answers = Answers.of([choice, choice], reader)
        said = [reader.tokenizer.decode(ids[s:]) for ids, s in zip(answers.ids, answers.starts, strict=True)]
        assert said == [" The old man", " Can't tell"] * 2 and answers.owner.tolist() == [0, 0, 1, 1]


class TestOutcomes:
    def test_flips_both_ways(self) -> None:
        pairs = [Pair(f"p{i % 2}", "all", "", "") for i in range(8)]
        was = np.array([1, 1, 1, 1, 0, 0, 0, 0], bool)
        now = np.array([1, 1, 1, 0, 1, 1, 0, 0], bool)
        score = score_pairs(pairs, now, was)
        assert (score.all.good_to_bad.value, score.all.bad_to_good.value) == (1 / 8, 2 / 8)
        assert (score.all.flips.value, score.all.change.value) == (3 / 8, 1 / 8)
        assert score.paradigms["p1"].good_to_bad == 1 / 4 and score.paradigms["p0"].good_to_bad == 0
        assert score.phenomena["all"].n_items == 8

    def test_bias_scores_by_hand(self) -> None:
        """Ambiguous: 10 items, 4 right (unknown), of 6 others 5 biased: (1 − 0.4)(2·5/6 − 1) = 0.4. Else 3 of 4: 0.5."""

        def item(i: int, ambiguous: bool) -> Choice:
            return Choice("Age", f"Age/{i}", "", ("a", "b", "c"), 2 if ambiguous else 1, ambiguous, 0, 2)

        choices = [item(i, i < 10) for i in range(15)]
        chosen = np.array([2, 2, 2, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 2])
        never_biased = np.array([2] * 10 + [1] * 5)
        score = score_choices(choices, chosen, never_biased)
        assert score.bias_ambiguous.value == pytest.approx(0.4)
        assert score.bias_disambiguated.value == pytest.approx(0.5)
        assert score.change_ambiguous.value == pytest.approx(0.4)
        assert score.change_disambiguated.value == pytest.approx(1.5)
        assert score.all.accuracy.value == pytest.approx(5 / 15) and score.other_answer.value == pytest.approx(10 / 15)
        assert score.bias_ambiguous.low < 0.4 < score.bias_ambiguous.high

    def test_templates_are_what_is_drawn(self) -> None:
        """40 copies of one item know no more than one."""
        one = Choice("Age", "Age/1", "", ("a", "b", "c"), 1, False, 0, 2)
        score = score_choices([one] * 40, np.array([0, 1] * 20), np.array([1] * 40))
        assert score.all.accuracy.value == 0.5 and score.all.accuracy.low is None


class TestEvaluate:
    def test_a_twin_is_no_different(self, tokenizer: Any) -> None:
        module = tiny()
        found = evaluate(
            Contestant("a", module), [Contestant("b", module)], {"t": TEXT}, settings=SMALL, tokenizer=tokenizer
        )
        text = found.models[0].text
        assert (text.kl.value, text.kl_99, text.top1.value, text.nats_added.value) == (0, 0, 1, 0)

    def test_figures_by_hand(self, folders: dict[str, Path], reader: Reader) -> None:
        found = evaluate(folders["reference"], [folders["worse"]], {"one": TEXT}, settings=SMALL)
        modules = [enter(folders[n]).module for n in ("reference", "worse")]
        cut = reader.windows(TEXT, SMALL.window)[:8]
        ids = torch.tensor(np.array([w.ids for w in cut]))
        with torch.no_grad():
            log_p, log_q = (torch.log_softmax(m(ids).logits[:, :-1].double(), -1) for m in modules)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        nats = -log_q.gather(-1, ids[:, 1:, None]).sum()
        text, n_bytes = found.models[0].text, sum(w.n_bytes for w in cut)
        assert (text.n_windows, text.n_tokens, text.n_bytes) == (len(cut), kl.numel(), n_bytes)
        assert text.kl.value == pytest.approx(float(kl.mean()), rel=1e-4)
        assert text.kl.low < text.kl.value < text.kl.high
        assert text.kl_90 == pytest.approx(float(kl.quantile(0.9)), rel=1e-3)
        assert text.top1.value == pytest.approx(float((log_p.argmax(-1) == log_q.argmax(-1)).double().mean()))
        assert text.nats_per_token.value == pytest.approx(float(nats) / kl.numel(), rel=1e-5)
        assert text.perplexity.value == pytest.approx(math.exp(float(nats) / kl.numel()), rel=1e-4)
        assert text.bits_per_byte.value == pytest.approx(float(nats) / math.log(2) / n_bytes, rel=1e-5)
        was = found.reference.text.bits_per_byte.value
        assert text.bits_added.value == pytest.approx(text.bits_per_byte.value - was, abs=1e-9)
        size = (folders["worse"] / "model.safetensors").stat().st_size
        n_parameters = sum(p.numel() for p in modules[0].parameters())
        assert found.models[0].n_bytes == size and found.n_parameters == n_parameters
        assert found.models[0].bits_per_parameter == pytest.approx(8 * size / n_parameters)

    def test_the_floor_is_the_reference_in_bfloat16(self, tokenizer: Any) -> None:
        module = tiny()
        worse = Contestant("worse", disturbed(module, 0.2))
        found = evaluate(Contestant("a", module), [worse], {"t": TEXT}, settings=SMALL, tokenizer=tokenizer)
        assert 0 < found.noise.text.kl.value < 0.1 * found.models[0].text.kl.value
        assert {p.dtype for p in module.parameters()} == {torch.float32}
        assert [r.name for r in found.rows] == ["a", "reference in bfloat16", "worse"]

    def test_items_and_several_texts(self, folders: dict[str, Path], tmp_path: Path) -> None:
        line = {"sentence_good": "He is here.", "sentence_bad": "He are here.", "UID": "verbs"}
        pairs = write_lines(tmp_path / "p.jsonl", [line | {"sentence_good": f"He is at {i}."} for i in range(9)])
        choices = write_lines(
            tmp_path / "c.jsonl", [bbq_line(context=f"{i} men.", question_index=str(i)) for i in range(5)]
        )
        (tmp_path / "a.txt").write_text(TEXT)
        (tmp_path / "b.txt").write_text("short")
        told: list[tuple[int, int]] = []
        found = evaluate(
            folders["reference"], [folders["worse"]], [tmp_path / "a.txt", tmp_path / "b.txt"], pairs=pairs,
            choices=choices, settings=SMALL, progress=lambda done, total, what: told.append((done, total)),
        )  # fmt: skip
        reference, model = found.reference, found.models[0]
        assert reference.pairs.all.n_items == 4 and reference.choices.all.n_items == 5
        assert (reference.pairs.all.flips.value, reference.choices.other_answer.value) == (0, 0)
        assert model.texts["b.txt"].n_windows == 1 and model.texts["b.txt"].kl.low is None
        assert model.text.n_tokens == sum(t.n_tokens for t in model.texts.values())
        assert told[-1][0] == told[-1][1] and sorted(told) == told
        assert json.loads(json.dumps(found.as_json(), allow_nan=False))["models"][0]["name"] == "worse"

    def test_an_archive_is_judged_and_its_weights_weighed(self, folders: dict[str, Path], tmp_path: Path) -> None:
        from laconic.sources.files import compress, info

        packed = tmp_path / "m.lac"
        compress(folders["reference"], packed, recipe="lossless")
        found = evaluate(folders["reference"], [packed], {"t": "hello there"}, settings=SMALL)
        weights = sum(i.packet_bytes for name, i in info(packed).packets if name.startswith("model.safetensors"))
        assert found.models[0].text.kl.value == 0
        assert weights < found.models[0].n_bytes < weights + 2500 < packed.stat().st_size

    def test_judge_in_short(self, folders: dict[str, Path]) -> None:
        verdict = judge(folders["reference"], folders["worse"], "once upon a time", window=16)
        assert verdict.kl > 0 and verdict.kl_interval == (verdict.kl,) * 3 and 0 <= verdict.top1 <= 1

    def test_refuses(self, folders: dict[str, Path], tokenizer: Any, tmp_path: Path) -> None:
        a = Contestant("a", tiny())

        def run(*models: Any, reference: Any = a, texts: Any = None, settings: Settings = SMALL) -> None:
            evaluate(reference, models, {"t": TEXT} if texts is None else texts, settings=settings, tokenizer=tokenizer)

        with pytest.raises(BadInput, match="vocabulary of 4,000"):
            run(Contestant("b", tiny(4000)))
        with pytest.raises(BadInput, match="not finite in window 0 of t"):
            broken = tiny()
            broken.model.norm.weight.data[3] = math.nan
            run(Contestant("b", broken))
        with pytest.raises(BadInput, match="no such model"):
            run(tmp_path / "none")
        with pytest.raises(BadInput, match="is no model: a folder with config.json"):
            run(tmp_path)
        with pytest.raises(BadInput, match="no text"):
            run(texts={})
        with pytest.raises(BadConfig, match="takes 128 at most"):
            run(settings=Settings(window=129, noise=False))
        with pytest.raises(BadConfig, match="give its tokenizer"):
            evaluate(a, [], {"t": TEXT})
        with pytest.raises(BadConfig, match="1 or more"):
            Settings(windows=0)

    def test_missing_weights_are_not_filled_with_noise(self, folders: dict[str, Path], tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(folders["reference"] / "model.safetensors")
        (tmp_path / "config.json").write_bytes((folders["reference"] / "config.json").read_bytes())
        del weights["model.layers.1.mlp.up_proj.weight"]
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(BadInput, match=r"1 tensors are missing \(model.layers.1.mlp.up_proj"):
            enter(tmp_path)
        (tmp_path / "model.safetensors").write_bytes(b"not weights at all")
        with pytest.raises(BadInput, match="cannot load the model"):
            enter(tmp_path)

    def test_other_words_are_refused(self, folders: dict[str, Path], tokenizer: Any, tmp_path: Path) -> None:
        import copy
        import shutil

        shutil.copytree(folders["reference"], tmp_path / "m")
        other = copy.deepcopy(tokenizer)
        other.add_tokens(["zyzzyva"])
        other.save_pretrained(tmp_path / "m")
        with pytest.raises(BadInput, match="differ in 1 words"):
            evaluate(folders["reference"], [tmp_path / "m"], {"t": TEXT}, settings=SMALL)
        (tmp_path / "m" / "tokenizer.json").write_text("{}")
        with pytest.raises(BadInput, match="cannot load the tokenizer"):
            evaluate(folders["reference"], [tmp_path / "m"], {"t": TEXT}, settings=SMALL)

    def test_says_what_to_install(self, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(contestants, "available", lambda: False)
        with pytest.raises(BadConfig, match=r"pip install 'laconic\[hf\]'"):
            enter(folders["reference"])

    def test_a_bin_beside_safetensors_is_not_weighed(self, tmp_path: Path) -> None:
        for name, n in (("a.safetensors", 5), ("b.safetensors", 7), ("pytorch_model.bin", 100), ("tokenizer.json", 9)):
            (tmp_path / name).write_bytes(b"x" * n)
        assert weight_bytes(tmp_path) == 12
        for name in ("a.safetensors", "b.safetensors"):
            (tmp_path / name).unlink()
        assert weight_bytes(tmp_path) == 100


def test_sentences_are_scored_from_their_first_word(reader: Reader) -> None:
    sentences = Sentences.of([Pair("p", "p", "A cat sat.", "Cat a sat.")], reader)
    assert {ids[0] for ids in sentences.ids} == {reader.prefix}
    right = sentences.outcomes(Contestant("m", tiny()), 4096, lambda n: None)
    assert right.shape == (1,) and right.dtype == bool
