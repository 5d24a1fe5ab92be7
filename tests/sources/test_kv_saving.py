"""Caches and fitted codecs on disk: what comes back is what was there, and what is damaged or foreign has a name."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="the hf extra is not installed")

import transformers

import laconic
from laconic.core.errors import BadConfig, CodecError, CorruptStream, ModelMismatch
from laconic.kv import Fitted
from laconic.sources.kv.cache import CompressedCache
from laconic.sources.kv.recipe import CacheRecipe, half
from laconic.sources.kv.saving import from_bytes
from tests.contract.damage import join_cache, lie, plain_damage, split_cache
from tests.sources.kv_models import ids, model
from tests.sources.test_kv_cache import fitted, run

N = 300
HALF = CacheRecipe(lambda _: half(), lambda _: half(), 16.0, group=32, window=8, sinks=3)


def prompt(kind: str, recipe: Any, x: torch.Tensor | None = None, **settings: Any) -> CompressedCache:
    """A cache of a prompt."""
    past = laconic.kv.cache(model(kind), recipe=recipe, **settings)
    x = ids(N, 2) if x is None else x
    run(model(kind), past, x, x.shape[1])
    return past


CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "pages": ("llama", "turboquant", {"bits": 3, "sinks": 2}),
    "sliding": ("gemma3", "turboquant", {"bits": 4}),
    "learned": ("llama", "auto", {"bits": 3.0}),
    "runs": ("llama", HALF, {}),
    "groups": ("llama", "kvquant", {}),
    "salient": ("llama", "zipcache", {}),
    "inputs": ("llama", "xquant", {"bits": 4}),
    "nested": ("llama", "staircase-kv", {}),
    "recurrent": ("qwen3-next", "turboquant", {"bits": 3}),
    "both": ("falcon-h1", "turboquant", {"bits": 3}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_loaded_cache_goes_on_as_the_first_would(case: str, tmp_path: Path) -> None:
    kind, recipe, settings = CASES[case]
    m, more = model(kind), ids(40, 2, seed=9)
    past = prompt(kind, recipe, **settings)
    n = past.save(tmp_path / "prompt.lac")
    assert n == (tmp_path / "prompt.lac").stat().st_size == len(past.to_bytes()) and len(list(tmp_path.iterdir())) == 1
    given = recipe if isinstance(recipe, CacheRecipe) else None
    loaded = [laconic.kv.load(tmp_path / "prompt.lac", m, given, mapped=mapped) for mapped in (False, True)]
    expected = run(m, past, more)
    for one in loaded:
        assert one.get_seq_length() == N
        assert torch.equal(run(m, one, more), expected)
        assert one.nbytes == past.nbytes and one.report().layers == past.report().layers
    # Each went its own way: the file is as it was, and the next request begins where the prompt ended.
    again = laconic.kv.load(tmp_path / "prompt.lac", m, given)
    assert again.get_seq_length() == N and torch.equal(run(m, again, more), expected)
    # What the file takes beyond what the cache holds: header, checksums, places of sections, and recurrent states.
    states = 40_000 if case in ("recurrent", "both") else 0
    fresh = laconic.kv.load(tmp_path / "prompt.lac", m, given)
    assert n < fresh.nbytes + 9_000 + states


def test_fitted_codecs_stay_out_of_the_file_and_must_be_the_same(tmp_path: Path) -> None:
    m, more = model("llama"), ids(20, 2, seed=9)
    past = prompt("llama", fitted("llama"))
    past.save(tmp_path / "p")
    with pytest.raises(ModelMismatch, match="calibration"):
        laconic.kv.load(tmp_path / "p", m)
    other = laconic.kv.fit(m, recipe="auto", rope="before", bits=6.0, calibration=ids(400, 2, seed=6))
    with pytest.raises(ModelMismatch, match="other codecs"):
        laconic.kv.load(tmp_path / "p", m, other)
    fitted("llama").save(tmp_path / "f")
    loaded = laconic.kv.load(tmp_path / "p", m, Fitted.load(tmp_path / "f"))
    assert torch.equal(run(m, loaded, more), run(m, past, more))
    with pytest.raises(ModelMismatch, match="other codecs"):
        laconic.kv.load(_saved(tmp_path, prompt("llama", "auto", bits=3.0)), m, fitted("llama"))


def _saved(folder: Path, past: CompressedCache) -> Path:
    past.save(folder / "other")
    return folder / "other"


def test_beams_share_what_they_share(tmp_path: Path) -> None:
    m, more = model("llama"), ids(20, 6, seed=9)
    past = prompt("llama", "turboquant", bits=4)
    alone = len(past.to_bytes())
    past.batch_repeat_interleave(3)
    assert len(past.to_bytes()) < alone + 2 * sum(x.window.nbytes * 2 for x in past.compressed) / 3 + 2000
    loaded = from_bytes(past.to_bytes(), m)
    assert loaded.nbytes == past.nbytes and torch.equal(run(m, loaded, more), run(m, past, more))


def test_cropped_padded_and_with_nan() -> None:
    m = model("llama")
    for recipe in ("turboquant", HALF):
        past = prompt("llama", recipe)
        past.crop(-150)
        loaded = from_bytes(past.to_bytes(), m, recipe if isinstance(recipe, CacheRecipe) else None)
        assert torch.equal(run(m, loaded, ids(90, 2, 7)), run(m, past, ids(90, 2, 7)))
    past = laconic.kv.cache(m, recipe=fitted("llama"))
    place = torch.arange(N).repeat(2, 1)
    place[1] = (place[1] - 50).clamp(min=0)
    with torch.inference_mode():
        m(input_ids=ids(N, 2), position_ids=place, past_key_values=past, use_cache=True)
    loaded = from_bytes(past.to_bytes(), m, fitted("llama"))
    assert loaded.compressed[0].store.shift.tolist() == [0, 50]
    assert torch.equal(run(m, loaded, ids(9, 2, 7)), run(m, past, ids(9, 2, 7)))
    for recipe in ("turboquant", HALF):
        past = laconic.kv.cache(m.config, recipe=recipe)
        k, v = torch.randn(2, 1, 2, N, 16, generator=torch.Generator().manual_seed(0))
        k[0, 1, 7, 3] = torch.nan
        for n in (0, 1):
            past.update(k, v, n)
        loaded = from_bytes(past.to_bytes(), m.config, recipe if isinstance(recipe, CacheRecipe) else None)
        assert any("head 1" in n for n in loaded.report().layers[0].notes)
        assert loaded.report() == past.report()


def test_a_short_prompt_and_an_empty_cache() -> None:
    m = model("llama")
    empty = from_bytes(laconic.kv.cache(m, recipe="turboquant").to_bytes(), m)
    assert empty.get_seq_length() == 0 and empty.nbytes == 0
    assert torch.equal(run(m, empty, ids(30), 30), run(m, laconic.kv.cache(m, recipe="turboquant"), ids(30), 30))
    past = prompt("llama", "auto", ids(100), bits=3.0)  # too little to learn from yet: the queries wait too
    assert past.compressed[0].store is None and past.compressed[0].queries is not None
    loaded = from_bytes(past.to_bytes(), m)
    more = ids(250, 1, 5)
    assert torch.equal(run(m, loaded, more, 250), run(m, past, more, 250)) and loaded.compressed[0].own_bytes > 0


# --- what is foreign


def test_another_model_or_recipe_is_refused_by_name(tmp_path: Path) -> None:
    m = model("llama")
    prompt("llama", "turboquant", bits=3).save(tmp_path / "p")
    for kind in ("llama3", "qwen3"):
        with pytest.raises(ModelMismatch, match="of model llama-"):
            laconic.kv.load(tmp_path / "p", model(kind))
    torch.manual_seed(8)
    with pytest.raises(ModelMismatch, match="other weights"):
        laconic.kv.load(tmp_path / "p", transformers.LlamaForCausalLM(m.config).eval())
    with pytest.raises(ModelMismatch, match="of recipe 'turboquant-cache'; this is 'auto-cache'"):
        laconic.kv.load(tmp_path / "p", m, "auto")
    with pytest.raises(ModelMismatch, match="of recipe 'turboquant-cache'; this is 'custom'"):
        laconic.kv.load(tmp_path / "p", m, HALF)
    with pytest.raises(ModelMismatch):
        laconic.kv.load(tmp_path / "p", m, fitted("llama"))
    prompt("llama", HALF).save(tmp_path / "h")
    with pytest.raises(BadConfig, match="custom"):
        laconic.kv.load(tmp_path / "h", m)
    other = CacheRecipe(HALF.keys, HALF.values, 16.0, group=64, window=8, sinks=3)
    with pytest.raises(ModelMismatch, match="'group': 32"):
        laconic.kv.load(tmp_path / "h", m, other)


def test_half_precision_weights_are_the_same_weights(tmp_path: Path) -> None:
    m = model.__wrapped__("llama").to(torch.bfloat16)
    past = laconic.kv.cache(m, recipe="turboquant")
    run(m, past, ids(90), 90)
    past.save(tmp_path / "p")
    assert laconic.kv.load(tmp_path / "p", m.float()).get_seq_length() == 90


def test_what_has_no_form_on_disk_says_so(tmp_path: Path) -> None:
    past = prompt("llama", "uncomp")
    with pytest.raises(BadConfig, match="EvictingStore has no form on disk"):
        past.save(tmp_path / "p")
    assert not list(tmp_path.iterdir())


# --- damage


@cache
def small(case: str) -> bytes:
    kind, recipe, settings = CASES[case]
    past = prompt(kind, recipe, **settings)
    return past.to_bytes()


def opened(data: bytes, case: str) -> None:
    """Load, and run on; whatever is wrong with it has a name."""
    kind, recipe, _ = CASES[case]
    past = from_bytes(data, model(kind), recipe if isinstance(recipe, CacheRecipe) else None)
    run(model(kind), past, ids(3, 2, 3))


@pytest.mark.parametrize("case", ["pages", "learned", "groups", "inputs", "recurrent"])
def test_flips_cuts_and_lies_end_in_named_errors(case: str) -> None:
    data, rng = small(case), random.Random(1)
    header, sections = split_cache(data)
    opened(join_cache(header, sections), case)
    for bad in plain_damage(data, 40, rng):
        if bad != data:
            with pytest.raises(CodecError):
                opened(bad, case)
    named = 0
    for _ in range(80):  # a header that lies, with every checksum right
        try:
            opened(join_cache(lie(header, rng), sections), case)
        except CodecError:
            named += 1
    assert named > 40
    for _ in range(40):  # sections that lie
        some = list(sections)
        at = rng.randrange(len(some))
        changed = bytearray(some[at])
        for _ in range(rng.randint(1, 6) if changed else 0):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        some[at] = bytes(changed)
        try:
            opened(join_cache(header, some), case)
        except CodecError:
            pass


def test_lengths_are_checked_before_memory_is_taken() -> None:
    header, sections = split_cache(small("pages"))
    for path, wrong_value in (
        (("layers", 0, "d"), 1 << 40),
        (("layers", 0, "heads"), 1 << 40),
        (("sections", 0, 1), [1 << 30, 1 << 30]),
        (("layers", 0, "store", "pasts", 0, "tokens"), 1 << 39),
        (("settings", "bits"), 1e30),
        (("rate",), float(1 << 60)),
    ):
        wrong = json.loads(json.dumps(header))
        node = wrong
        for k in path[:-1]:
            node = node[k]
        node[path[-1]] = wrong_value
        with pytest.raises((CorruptStream, ModelMismatch)):
            from_bytes(join_cache(wrong, sections), model("llama"))
    with pytest.raises(CorruptStream, match="not a saved cache"):
        from_bytes(b"", model("llama"))


# --- fitted codecs


def test_fitted_codecs_come_back(tmp_path: Path) -> None:
    m, f = model("llama"), fitted("llama")
    f.save(tmp_path / "fitted.safetensors")
    assert len(list(tmp_path.iterdir())) == 1
    back = Fitted.load(tmp_path / "fitted.safetensors")
    assert (back.name, back.rate, back.rates, back.model, back.settings) == (
        f.name,
        f.rate,
        f.rates,
        f.model,
        f.settings,
    )
    assert back.nbytes == f.nbytes
    x = ids(N + 20, 2)
    assert torch.equal(run(m, laconic.kv.cache(m, recipe=back), x, N), run(m, laconic.kv.cache(m, recipe=f), x, N))
    with pytest.raises(ModelMismatch, match="fitted to another model"):
        laconic.kv.cache(model("qwen3"), recipe=back)


def test_a_fitted_recipe_without_an_id_is_given_again(tmp_path: Path) -> None:
    from laconic.core.combine import chain
    from laconic.quantize.coordinates import CoordinateCodes
    from laconic.transforms.heads import HeadBasis

    def at(rate: float) -> Any:
        return chain(HeadBasis(), CoordinateCodes(rate))

    recipe = CacheRecipe(at, at, 3.0, group=8, window=16, learns="once")
    f = laconic.kv.fit(model("llama"), recipe=recipe, calibration=ids(400, 2))
    f.save(tmp_path / "f")
    with pytest.raises(ModelMismatch, match="recipe="):
        Fitted.load(tmp_path / "f")
    assert Fitted.load(tmp_path / "f", recipe).nbytes == f.nbytes
    with pytest.raises(ModelMismatch, match="'group': 8"):
        Fitted.load(tmp_path / "f", CacheRecipe(at, at, 3.0, group=16, window=16, learns="once"))


def test_damaged_files_of_codecs_have_a_name(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    path = tmp_path / "f"
    fitted("llama").save(path)
    data, rng = path.read_bytes(), random.Random(2)
    for bad in plain_damage(data, 40, rng):
        path.write_bytes(bad)
        try:  # safetensors has no checksum: a flip in what is learned is found by its hash
            found = Fitted.load(path)
        except CodecError:
            continue
        said = (found.name, found.rate, found.rates, found.model, found.settings)
        pytest.fail(f"damage went unseen; {said}")
    path.write_bytes(data)
    arrays = load_file(path)
    meta = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["laconic"])

    def written(said: Any, learned: dict[str, Any]) -> Path:
        save_file(learned, path, metadata={"laconic": json.dumps(said)})
        return path

    assert Fitted.load(written(meta, arrays)).name == "auto-cache"
    first = min(arrays)
    for said, learned, error, words in (
        ({**meta, "recipe": "autocache"}, arrays, BadConfig, "auto-cache"),
        ({**meta, "settings": {"windows": 3}}, arrays, CorruptStream, "no setting"),
        ({**meta, "settings": {"window": "x"}}, arrays, CorruptStream, "one like"),
        (meta, {k: v for k, v in arrays.items() if k != first}, CorruptStream, "absent"),
        (meta, {**arrays, first: arrays[first][:1]}, CorruptStream, "not what was saved"),
        (meta, {**arrays, first: arrays[first].astype("float32")}, CorruptStream, "is right"),
        (meta, {**arrays, "9.keys.x": arrays[first]}, CorruptStream, "no codec knows"),
        ({"format": 1}, arrays, CorruptStream, "fields"),
    ):
        with pytest.raises(error, match=words):
            Fitted.load(written(said, learned))
    for _ in range(60):
        try:
            Fitted.load(written(lie(meta, rng), arrays))
        except CodecError:
            pass
