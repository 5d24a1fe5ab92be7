"""What the peers' scripts share: standard library, NumPy and, in functions, what every peer's environment has.

A script is called as `python -m scripts.NAME MODEL_DIR CALIBRATION_TEXT OUT_DIR WORK_DIR SETTING_JSON`. It writes a dequantized
Hugging Face folder to OUT_DIR and prints `{"true_bytes": n}` as its last line.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

N_WINDOWS, WINDOW = 128, 512
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")


@dataclass(frozen=True)
class Job:
    """What a script was asked to do. work: a folder that survives between settings of one peer, model and text."""

    model_dir: Path
    text: Path
    out_dir: Path
    work: Path
    setting: Mapping[str, Any]


def read_job() -> Job:
    """The command line of a script."""
    model, text, out, work, setting = sys.argv[1:]
    return Job(Path(model), Path(text), Path(out), Path(work), json.loads(setting))


def report(true_bytes: int) -> None:
    """The last line of a script's output."""
    print(json.dumps({"true_bytes": int(true_bytes)}), flush=True)


def spread_windows(tokens: Sequence[int], n_windows: int = N_WINDOWS, length: int = WINDOW) -> list[list[int]]:
    """At most `n_windows` stretches of `length` tokens, evenly spaced, not overlapping.

    Raises
    ------
    ValueError: there are fewer tokens than one window.
    """
    n = min(n_windows, len(tokens) // length)
    if n == 0:
        raise ValueError(f"{len(tokens)} tokens are less than one window of {length}")
    stride = (len(tokens) - length) // max(1, n - 1)
    return [list(tokens[i * stride : i * stride + length]) for i in range(n)]


def calibration_windows(job: Job) -> list[list[int]]:
    """The windows every peer calibrates on: each begins with the model's first token, as in training."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(job.model_dir / "tokenizer.json"))
    bos = json.loads((job.model_dir / "config.json").read_text())["bos_token_id"]
    tokens = tokenizer.encode(job.text.read_text(encoding="utf-8"), add_special_tokens=False).ids
    return [[bos, *w] for w in spread_windows(tokens, length=WINDOW - 1)]


def read_tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Name and values (float32) of every tensor of a folder's safetensors files; reads F32, F16 and BF16."""
    for path in sorted(folder.glob("*.safetensors")):
        raw = path.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        for name, entry in json.loads(raw[8:start]).items():
            if name == "__metadata__":
                continue
            a, b = entry["data_offsets"]
            data = raw[start + a : start + b]
            if entry["dtype"] == "BF16":
                values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
            else:
                values = np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[entry["dtype"]]).astype(np.float32)
            yield name, values.reshape(entry["shape"])


def write_folder(job: Job, tensors: Mapping[str, np.ndarray]) -> None:
    """A folder as `model_dir` is, with these float32 tensors, written aside and moved so that it is whole or absent.

    Raises
    ------
    ValueError: the names or shapes are not those of the model.
    """
    from safetensors.numpy import save_file

    want = {name: v.shape for name, v in read_tensors(job.model_dir)}
    seen = {name: v.shape for name, v in tensors.items()}
    if want != seen:
        raise ValueError(f"the dequantized model differs from {job.model_dir} in {sorted(want.items() ^ seen.items())}")
    aside = job.out_dir.with_name(job.out_dir.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    config = json.loads((job.model_dir / "config.json").read_text())
    (aside / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2))
    for name in TOKENIZER_FILES:
        if (job.model_dir / name).exists():
            shutil.copyfile(job.model_dir / name, aside / name)
    arrays = {name: np.ascontiguousarray(v, dtype=np.float32) for name, v in tensors.items()}
    save_file(arrays, str(aside / "model.safetensors"), metadata={"format": "pt"})
    shutil.rmtree(job.out_dir, ignore_errors=True)
    aside.rename(job.out_dir)


def embedding(values: np.ndarray, code: Mapping[str, int] | None) -> tuple[np.ndarray, int]:
    """An embedding for a tool that leaves it alone: two bytes a value, or symmetric integers in groups along the row.

    Each group has a float16 scale, the best of 40 in squared error.

    Returns
    -------
    The dequantized matrix (float32) and its bytes.
    """
    if code is None:
        return values.astype(np.float16).astype(np.float32), 2 * values.size
    x = values.reshape(-1, code["group"])
    top = 2 ** (code["bits"] - 1) - 1
    largest = np.abs(x).max(axis=1, keepdims=True)
    best, least = np.zeros_like(x), np.full(len(x), np.inf)
    for shrink in np.linspace(0.5, 1.1, 40):
        scale = np.maximum(largest * shrink / top, 1e-7).astype(np.float16).astype(np.float32)
        y = np.clip(np.round(x / np.maximum(scale, 6e-8)), -top - 1, top) * scale
        error = ((x - y) ** 2).sum(axis=1)
        better = error < least
        best[better], least[better] = y[better], error[better]
    return best.reshape(values.shape), values.size * code["bits"] // 8 + 2 * len(x)


def is_embedding(name: str) -> bool:
    """Whether a tensor is the embedding or an untied head."""
    return "embed_tokens" in name or "lm_head" in name


def made_once(path: Path, make: Callable[[Path], None]) -> Path:
    """A file of the work folder, made if it is not there; a run that is stopped leaves no half of it."""
    if not path.exists():
        aside = path.with_name("part-" + path.name)
        make(aside)
        aside.rename(path)
    return path


def with_embedding(job: Job, quantize: Callable[[Job], dict[str, np.ndarray]]) -> None:
    """Do the job of a tool that leaves the embedding alone.

    `quantize` gives all else, dequantized, and its size under "bytes"; that is kept for the next setting's embedding.
    """
    rest = {k: v for k, v in job.setting.items() if k != "embedding"}
    key = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]

    def make(path: Path) -> None:
        with path.open("wb") as f:
            np.savez(f, **quantize(job))

    with np.load(made_once(job.work / f"{key}.npz", make)) as made:
        tensors = {name: made[name] for name in made.files}
    true_bytes = int(tensors.pop("bytes"))
    for name, values in read_tensors(job.model_dir):
        if is_embedding(name):
            tensors[name], n = embedding(values, job.setting["embedding"])
            true_bytes += n
    write_folder(job, tensors)
    report(true_bytes)
