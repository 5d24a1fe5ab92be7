"""Caches judged while a model decodes: what is counted, what is compared, what is refused."""

from __future__ import annotations

from importlib.resources import as_file, files
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from laconic.core.errors import BadConfig, BadInput

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers import Cache, DynamicCache, QuantizedCache  # noqa: E402
from transformers.cache_utils import DynamicLayer  # noqa: E402

from laconic.bench.kv_blocks import blocks_cache  # noqa: E402
from laconic.sources.kv.decode import decode  # noqa: E402
from laconic.sources.kv.evaluate import Settings, evaluate  # noqa: E402
from laconic.sources.kv.occupied import n_values, true_bytes  # noqa: E402
from laconic.sources.kv.recall import recall  # noqa: E402
from laconic.sources.kv.recall_tasks import TASKS, make_tasks  # noqa: E402
from laconic.sources.weights.reading import Reader  # noqa: E402

TEXT = "It was the best of times, it was the worst of times; a café — naïve, and full of words. " * 40
SMALL = Settings(window=48, prefill=32, windows=4, batch=4, buckets=3, noise=False)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    with as_file(files("laconic") / "samples" / "english-llama-7m") as folder:
        return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=4096, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=128, bos_token_id=0, eos_token_id=1,
        tie_word_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).float().eval()


class Spoiled(DynamicLayer):
    """Keeps everything, and answers with noise on it behind the first call; `size` may be NaN."""

    size = 0.05

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
        first = self.get_seq_length() == 0
        keys, values = super().update(key_states, value_states)
        noise = self.size * torch.randn(keys.shape, generator=torch.Generator().manual_seed(0))
        return (keys, values) if first else (keys, values + noise)


class Broken(Spoiled):
    size = float("nan")


def spoiled(kind: type) -> Any:
    return lambda: Cache(layers=[kind(), kind()])


class TestEvaluate:
    def test_the_reference_is_the_model(self, model: Any, tokenizer: Any) -> None:
        """Fed token by token it says what one forward pass says; a second uncompressed cache costs nothing."""
        found = evaluate(model, tokenizer, {"again": lambda: DynamicCache()}, {"t": TEXT}, SMALL)
        (again,) = found.caches
        assert again.text.kl.value == 0 and again.text.top1.value == 1 and again.bits == again.bits_at_end == 16
        windows = Reader.of(tokenizer).windows(TEXT, 48, skip=32)
        ids = torch.from_numpy(np.stack([windows[i * len(windows) // 4].ids for i in range(4)]))
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[:, 32:-1]
        nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 33:])
        assert found.reference.text.nats_per_token.value == pytest.approx(float(nats), rel=1e-4)
        assert found.reference.text.n_tokens == 4 * 15 and found.reference.bits == 16

    def test_loss_is_seen_where_one_forward_pass_sees_none(self, model: Any, tokenizer: Any) -> None:
        ids = torch.arange(24)[None]
        with torch.inference_mode():
            plain = model(input_ids=ids).logits
            assert torch.equal(plain, model(input_ids=ids, past_key_values=blocks_cache(model.config, "q4_0")).logits)
        caches = {f: lambda f=f: blocks_cache(model.config, f) for f in ("q4_0", "q5_0", "q8_0")}
        found = evaluate(model, tokenizer, caches, {"t": TEXT}, SMALL)
        kl = [c.text.kl.value for c in found.caches]
        assert kl[0] > 2 * kl[1] > 4 * kl[2] > 0
        assert [c.bits for c in found.caches] == pytest.approx([4.5, 5.5, 8.5])
        assert found.caches[0].n_bytes == 4 * 47 * 2 * 2 * 18  # windows, tokens, layers, keys and values, a block

    def test_windows_beside_each_other_do_not_meet(self, model: Any, tokenizer: Any) -> None:
        make = {"q4_0": lambda: blocks_cache(model.config, "q4_0", rotate=True)}
        alone, together = (
            evaluate(model, tokenizer, make, {"t": TEXT}, Settings(48, 32, windows=3, batch=b, noise=False)).caches[0]
            for b in (1, 3)
        )
        assert alone.text.kl.value == pytest.approx(together.text.kl.value, rel=1e-3)
        assert alone.bits == together.bits and alone.n_bytes == together.n_bytes

    def test_positions_make_up_the_whole(self, model: Any, tokenizer: Any) -> None:
        make = {"q4_0": lambda: blocks_cache(model.config, "q4_0")}
        (score,) = evaluate(model, tokenizer, make, {"t": TEXT}, SMALL).caches
        assert [(b.first, b.last) for b in score.positions] == [(32, 36), (37, 41), (42, 46)]
        assert np.mean([b.kl.value for b in score.positions]) == pytest.approx(score.text.kl.value)
        assert score.text.kl.low < score.text.kl.value < score.text.kl.high

    def test_the_noise_floor_is_the_model_in_bfloat16(self, model: Any, tokenizer: Any) -> None:
        found = evaluate(model, tokenizer, {}, {"t": TEXT}, Settings(48, 32, windows=2, batch=2))
        assert found.noise is not None and 0 < found.noise.text.kl.value < 0.1
        assert model.dtype == torch.float32 and found.as_json()["noise"]["name"] == "bfloat16"

    def test_texts_take_turns_and_bytes_are_those_predicted(self, model: Any, tokenizer: Any) -> None:
        found = evaluate(model, tokenizer, {}, {"a": TEXT, "b": TEXT[10:]}, SMALL)
        assert found.texts == ("a", "b") and found.reference.text.n_windows == 4
        reader = Reader.of(tokenizer)
        whole, rest = reader.windows(TEXT, 48), reader.windows(TEXT, 48, skip=32)
        ids = reader.encode([TEXT])[0]
        assert rest[1].n_bytes == len(tokenizer.decode(ids[47 + 32 : 94]).encode()) < whole[1].n_bytes
        with pytest.raises(BadConfig, match="0 to 46"):
            reader.windows(TEXT, 48, skip=47)

    def test_refuses(self, model: Any, tokenizer: Any) -> None:
        with pytest.raises(BadInput, match=r"wide takes 16.00 bits per value .* nothing was compressed"):
            evaluate(model, tokenizer, {"wide": spoiled(Spoiled)}, {"t": TEXT}, SMALL)
        with pytest.raises(BadInput, match="broken: logits that are not finite in decode step 0"):
            evaluate(model, tokenizer, {"broken": spoiled(Broken)}, {"t": TEXT}, SMALL)
        with pytest.raises(BadInput, match="poem has 4 tokens; give more than the 32"):
            evaluate(model, tokenizer, {}, {"poem": "It was the best"}, SMALL)
        with pytest.raises(BadInput, match="poem has 40 tokens; a window takes 47"):
            evaluate(model, tokenizer, {}, {"poem": " the" * 40}, SMALL)
        with pytest.raises(BadInput, match="no text"):
            evaluate(model, tokenizer, {}, {}, SMALL)
        with pytest.raises(BadConfig, match="128 at most"):
            evaluate(model, tokenizer, {}, {"t": TEXT}, Settings(window=129, prefill=32))
        with pytest.raises(BadConfig, match="'none'"):
            evaluate(model, tokenizer, {"none": lambda: DynamicCache()}, {"t": TEXT}, SMALL)
        for bad in ({"prefill": 0}, {"prefill": 1023}, {"batch": 0}, {"buckets": 256}):
            with pytest.raises(BadConfig):
                Settings(**bad)


class TestOccupied:
    def test_everything_that_a_layer_holds_counts_once(self) -> None:
        codes, scales = torch.zeros(100, dtype=torch.uint8), torch.zeros(10)
        layer = SimpleNamespace(
            stored=(codes, {"scale": scales, "shape": (3, 4)}), again=[codes[:50]], part=torch.zeros(8, 64)[:, :3]
        )
        cache = SimpleNamespace(layers=[layer, SimpleNamespace(other=torch.zeros(6, dtype=torch.float16))])
        assert true_bytes(cache) == 100 + 2 * 10 + 2 * 8 * 64 + 2 * 6
        assert true_bytes(cache, float_bytes=4) == 100 + 4 * 10 + 4 * 8 * 64 + 2 * 6

    def test_its_own_word_goes_first(self) -> None:
        assert true_bytes(SimpleNamespace(nbytes=7, layers=[])) == 7

    @pytest.mark.parametrize("kind", ["plain", "fp8"])
    def test_stock_caches(self, model: Any, kind: str) -> None:
        cache = DynamicCache(config=model.config) if kind == "plain" else QuantizedCache("fp8", model.config)
        steps = decode(model, cache, torch.arange(20)[None].repeat(3, 1), 16, count_values=kind == "plain")
        values = 3 * 2 * 2 * 32 * np.arange(17, 21)
        scales = 2 * 2 * 2  # a float of each layer's keys and values, 2 bytes
        assert steps.n_bytes.tolist() == (2 * values if kind == "plain" else values + scales).tolist()
        if kind == "plain":
            assert steps.n_values.tolist() == values.tolist()

    def test_an_empty_cache_has_no_values(self, model: Any) -> None:
        with pytest.raises(BadInput, match="no key or value"):
            n_values(DynamicCache(config=model.config))


class Induction(torch.nn.Module):
    """A head by hand that finds the latest token like this one and says what came behind it then."""

    def __init__(self) -> None:
        super().__init__()
        self.config = transformers.LlamaConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=1,
                                               num_key_value_heads=1, head_dim=64, vocab_size=4096)  # fmt: skip
        words = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
        self.words = torch.nn.functional.normalize(words, dim=1)
        self.device = torch.device("cpu")

    def forward(self, input_ids: Any, past_key_values: Any, use_cache: bool = True) -> Any:
        before = getattr(past_key_values, "last", torch.zeros_like(input_ids[:, :1]))
        previous = torch.cat([before, input_ids[:, :-1]], 1)
        past_key_values.last = input_ids[:, -1:]
        keys, values = past_key_values.update(self.words[previous][:, None], self.words[input_ids][:, None], 0)
        n, total = input_ids.shape[1], keys.shape[2]
        scores = 60 * self.words[input_ids] @ keys[:, 0].transpose(1, 2)
        late = torch.arange(total) > torch.arange(total - n, total)[:, None]
        mixed = scores.masked_fill(late, -torch.inf).softmax(-1) @ values[:, 0]
        return SimpleNamespace(logits=30 * mixed @ self.words.T)


WORDS = " ".join(f"{a}{b}" for a in ("stone", "river", "lamp", "horse", "salt", "iron") for b in range(150))


class TestRecall:
    def test_tasks_hold_their_answers(self, tokenizer: Any) -> None:
        made = make_tasks(Reader.of(tokenizer), {"a": WORDS, "b": TEXT}, tuple(TASKS), 6, 128)
        assert [t.name for t in made] == list(TASKS)
        for task in made:
            assert (task.ids[:, 0] == 0).all() and task.ids.shape == task.scored.shape and task.ids.shape[1] <= 128
            assert task.scored.any(1).all() and not task.scored[:, : task.prefill + 1].any()
            bare = task.without_context()
            assert np.array_equal(bare.ids[bare.scored], task.ids[task.scored])
            assert bare.ids.shape[1] == task.ids.shape[1] - task.context and bare.prefill >= 1
            for row, marks in zip(task.ids, task.scored, strict=True):
                known = {tuple(p) for p in np.lib.stride_tricks.sliding_window_view(row[: task.prefill], 2)}
                for at in np.flatnonzero(marks):
                    assert (row[at - 1], row[at]) in known, task.name
        again = make_tasks(Reader.of(tokenizer), {"a": WORDS, "b": TEXT}, tuple(TASKS), 6, 128)
        assert all(np.array_equal(a.ids, b.ids) for a, b in zip(made, again, strict=True))

    def test_a_head_that_copies_needs_its_cache(self, tokenizer: Any) -> None:
        model = Induction()
        tasks = make_tasks(Reader.of(tokenizer), {"a": WORDS, "b": TEXT}, ("needle", "repeats"), 12, 128)

        class Deaf(DynamicLayer):
            def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
                keys, values = super().update(key_states, value_states)
                return torch.zeros_like(keys), values

        caches = {"q8_0": lambda: blocks_cache(model.config, "q8_0"), "deaf": lambda: Cache(layers=[Deaf()])}
        for found in recall(model, caches, tasks, batch=5):
            fine, deaf = found.caches
            assert found.able and found.gain.value > 3 and found.reference.exact.value > 0.6, found.task
            assert fine.within and abs(fine.change.value) < 0.1 and fine.bits == pytest.approx(8.5)
            assert not deaf.within and deaf.change.low > 0.2 and deaf.exact_change.high < 0
            assert found.as_json()["caches"][1]["within"] is False

    def test_what_the_model_cannot_do_says_nothing(self, model: Any, tokenizer: Any) -> None:
        (task,) = make_tasks(Reader.of(tokenizer), {"a": WORDS}, ("needle",), 8, 100)
        (found,) = recall(model, {}, [task])
        assert not found.able and found.n_scored == 8 * 2

    def test_refuses(self, tokenizer: Any) -> None:
        reader = Reader.of(tokenizer)
        with pytest.raises(BadConfig, match="needle"):
            make_tasks(reader, {"a": TEXT}, ("needles",), 2, 64)
        with pytest.raises(BadInput, match="a has"):
            make_tasks(reader, {"a": "It was the"}, ("needle",), 2, 64)

    def test_a_task_without_items_is_left_out(self) -> None:
        new = Reader(lambda texts, **_: {"input_ids": [list(range(500))]}, 0)
        made = make_tasks(new, {"a": ""}, ("names", "needle"), 2, 32)
        assert [t.name for t in made] == ["needle"]
