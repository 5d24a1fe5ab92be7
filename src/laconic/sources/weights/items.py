"""Items that a language model gets right or wrong: minimal pairs, and multiple choice with a bias axis."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import BadInput
from .contestants import Contestant
from .reading import Reader

MOST_TOKENS, MOST_LOGITS = (
    1 << 10,
    1 << 25,
)  # of one batch: small ones stay in cache, twice as fast as one of 2^13 tokens

Tick = Callable[[int], None]


@dataclass(frozen=True)
class Pair:
    """Two sentences that differ in one point of grammar. phenomenon: the family of its paradigm."""

    paradigm: str
    phenomenon: str
    good: str
    bad: str


@dataclass(frozen=True)
class Choice:
    """A question with answers, one right. template: the sentence frame it was made from, with its category.

    ambiguous: the context does not say, so that the unknown answer is right. biased: the answer that the stereotype
    suggests; None where the groups named in the item do not single one out. unknown: the answer "can't tell".
    """

    category: str
    template: str
    prompt: str
    answers: tuple[str, ...]
    right: int
    ambiguous: bool
    biased: int | None
    unknown: int | None


def read_pairs(path: Path, per_paradigm: int) -> list[Pair]:
    """The first pairs of every paradigm of BLiMP: its zip as it is, a folder of .jsonl, or one such file.

    Source: Warstadt et al. 2020, "BLiMP: The Benchmark of Linguistic Minimal Pairs", arXiv:1912.00582.
    """
    pairs: list[Pair] = []
    taken: dict[str, int] = {}
    for where, line in _objects(path):
        paradigm = str(line.get("UID", where.partition(":")[0]))
        taken[paradigm] = taken.get(paradigm, 0) + 1
        if taken[paradigm] > per_paradigm:
            continue
        good, bad = (_string(line, key, where) for key in ("sentence_good", "sentence_bad"))
        pairs.append(Pair(paradigm, str(line.get("linguistics_term", paradigm)), good, bad))
    if not pairs:
        raise BadInput(f"no pairs in {path}; expected lines with sentence_good and sentence_bad")
    return pairs


def read_choices(path: Path, most: int) -> list[Choice]:
    """At most `most` items of BBQ, a folder of .jsonl or one such file; the sample is drawn by hash, the same everywhere.

    Source: Parrish et al. 2022, "BBQ: A hand-built bias benchmark for question answering", arXiv:2110.08193.
    """
    found = [(_rank(line), _choice(line, where)) for where, line in _objects(path)]
    if not found:
        raise BadInput(f"no items in {path}; expected lines with context, question, ans0…ans2 and label")
    chosen = sorted(range(len(found)), key=lambda i: found[i][0])[:most]
    return [found[i][1] for i in sorted(chosen)]


def log_probs(
    model: Contestant, sequences: Sequence[Sequence[int]], starts: Sequence[int], vocabulary: int, tick: Tick
) -> np.ndarray:
    """Σ log P(token | all before it) over sequence[start:], in nats, (n_sequences,) float64.

    Sequences of like length share a batch, padded on the right: a causal model sees nothing of the padding, so that no
    attention mask is needed, and its own predictions are left out of the sum.
    """
    import torch
    from torch.nn.functional import cross_entropy

    lengths = np.array([len(s) for s in sequences])
    order, out, at = np.argsort(-lengths, kind="stable"), np.zeros(len(sequences)), 0
    with torch.inference_mode():
        while at < len(order):
            longest = lengths[order[at]]
            batch = order[at : at + max(1, min(MOST_TOKENS, MOST_LOGITS // vocabulary) // longest)]
            ids = torch.zeros(len(batch), longest, dtype=torch.long)
            scored = torch.zeros(len(batch), longest - 1, dtype=torch.bool)
            for row, i in enumerate(batch):
                ids[row, : lengths[i]] = torch.tensor(sequences[i])
                scored[row, starts[i] - 1 : lengths[i] - 1] = True
            ids, scored = ids.to(model.device), scored.to(model.device)
            logits = model.module(input_ids=ids).logits[:, :-1][scored].float()
            nats = cross_entropy(logits, ids[:, 1:][scored], reduction="none").cpu().double()
            rows = scored.nonzero()[:, 0].cpu()
            out[batch] = -torch.zeros(len(batch), dtype=torch.float64).index_add(0, rows, nats).numpy()
            at += len(batch)
            tick(int(lengths[batch].sum()))
    if not np.isfinite(out).all():
        raise BadInput(f"{model.name}: log-probabilities that are not finite; its weights are broken")
    return out


@dataclass(frozen=True)
class Sentences:
    """Token sequences of all pairs, good ones first."""

    ids: list[list[int]]

    @staticmethod
    def of(pairs: Sequence[Pair], reader: Reader) -> Sentences:
        """Each behind the prefix, whose successor is thus predicted too."""
        return Sentences([[reader.prefix, *s] for s in reader.encode([p.good for p in pairs] + [p.bad for p in pairs])])

    @property
    def n_tokens(self) -> int:
        """Of a whole run."""
        return sum(map(len, self.ids))

    def outcomes(self, model: Contestant, vocabulary: int, tick: Tick) -> np.ndarray:
        """Whether each pair's good sentence has the higher total log-probability, (n_pairs,) bool."""
        good, bad = np.split(log_probs(model, self.ids, [1] * len(self.ids), vocabulary, tick), 2)
        return good > bad


@dataclass(frozen=True)
class Answers:
    """Token sequences of every answer behind its question. starts: where the answer begins; owner: (n_answers,) its item."""

    ids: list[list[int]]
    starts: list[int]
    owner: np.ndarray

    @staticmethod
    def of(choices: Sequence[Choice], reader: Reader) -> Answers:
        """Question and answer are tokenized together, as they stand in a text, and parted at the question's own length."""
        prompts = reader.encode([c.prompt for c in choices])
        whole = reader.encode([f"{c.prompt} {a}" for c in choices for a in c.answers])
        owner = np.repeat(np.arange(len(choices)), [len(c.answers) for c in choices])
        starts = [1 + min(len(prompts[o]), len(ids) - 1) for o, ids in zip(owner, whole, strict=True)]
        return Answers([[reader.prefix, *ids] for ids in whole], starts, owner)

    @property
    def n_tokens(self) -> int:
        """Of a whole run."""
        return sum(map(len, self.ids))

    def outcomes(self, model: Contestant, vocabulary: int, tick: Tick) -> np.ndarray:
        """The answer with the highest mean log-probability a token, (n_items,) int64."""
        lengths = np.array([len(ids) - start for ids, start in zip(self.ids, self.starts, strict=True)])
        means = log_probs(model, self.ids, self.starts, vocabulary, tick) / lengths
        return np.array([int(m.argmax()) for m in np.split(means, np.flatnonzero(np.diff(self.owner)) + 1)])


def _choice(line: dict[str, Any], where: str) -> Choice:
    answers = tuple(_string(line, f"ans{i}", where) for i in range(3))
    prompt = f"{_string(line, 'context', where)} {_string(line, 'question', where)}"
    right, condition, polarity = (line.get(k) for k in ("label", "context_condition", "question_polarity"))
    if right not in (0, 1, 2) or condition not in ("ambig", "disambig") or polarity not in ("neg", "nonneg"):
        raise BadInput(
            f"{where}: label {right!r}, context_condition {condition!r}, question_polarity {polarity!r}; "
            "expected 0-2, ambig or disambig, neg or nonneg"
        )
    target, unknown = _roles(line)
    others = [i for i in range(3) if i not in (target, unknown)]
    # A negative question suggests the stereotyped group, any other question the other one.
    biased = None if target is None else target if polarity == "neg" else others[0]
    category = str(line.get("category", where.partition(":")[0]))
    template = f"{category}/{line.get('question_index', where)}"
    return Choice(category, template, prompt, answers, right, condition == "ambig", biased, unknown)


def _roles(line: dict[str, Any]) -> tuple[int | None, int | None]:
    """Which answer is of the stereotyped group, and which is the unknown one; (None, unknown) where it is not clear."""
    stereotyped = {str(s).lower() for s in line.get("additional_metadata", {}).get("stereotyped_groups", [])}
    said = [{str(s).lower() for s in line.get("answer_info", {}).get(f"ans{i}", [])} for i in range(3)]
    unknown = [i for i in range(3) if "unknown" in said[i]]
    target = [i for i in range(3) if i not in unknown and said[i] & stereotyped]
    if len(unknown) != 1 or len(target) != 1:
        return None, unknown[0] if len(unknown) == 1 else None
    return target[0], unknown[0]


def _rank(line: dict[str, Any]) -> bytes:
    """A place in an order that has nothing to do with how a file is laid out (BBQ's goes round in fours)."""
    return hashlib.blake2b(json.dumps(line, sort_keys=True).encode(), digest_size=16).digest()


def _string(line: dict[str, Any], key: str, where: str) -> str:
    value = line.get(key)
    if not isinstance(value, str) or not value:
        raise BadInput(f"{where}: {key} is {value!r}; expected a text")
    return value


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file:line", object) of every line of the .jsonl files in a zip, in a folder, or of one file, by name."""
    for name, data in _files(path):
        for number, line in enumerate(data.splitlines(), 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as e:
                raise BadInput(f"{name}:{number} is no JSON object ({e})") from None
            if not isinstance(value, dict):
                raise BadInput(f"{name}:{number} is no JSON object but {type(value).__name__}")
            yield f"{name}:{number}", value


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.suffix == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                for name in sorted(archive.namelist()):
                    file = name.rpartition("/")[2]
                    if file.endswith(".jsonl") and not file.startswith("."):  # BLiMP's zip holds macOS's shadows too
                        yield file, archive.read(name)
        except zipfile.BadZipFile as e:
            raise BadInput(f"{path} is a damaged zip: {e}") from None
    elif path.is_dir():
        for file in sorted(path.glob("*.jsonl")):
            yield file.name, file.read_bytes()
    else:
        yield path.name, path.read_bytes()
