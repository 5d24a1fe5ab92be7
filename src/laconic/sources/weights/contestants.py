"""Language models to be judged: from folders, packed archives, GGUF files or memory, with the true size of their weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...core.errors import BadConfig, BadInput, CodecError

HOLD_WEIGHTS = (".safetensors", ".gguf", ".lac", ".bin")


@dataclass(frozen=True)
class Contestant:
    """A model by name. module: called with `input_ids` (n, length) it gives an object with `logits` (n, length, vocabulary).

    n_bytes: of the weights as stored; None in memory.
    """

    name: str
    module: Any
    n_bytes: int | None = None

    @property
    def n_parameters(self) -> int:
        """Tied ones once."""
        return sum(p.numel() for p in self.module.parameters())

    @property
    def device(self) -> Any:
        """Where its inputs go."""
        return next(chain(self.module.parameters(), self.module.buffers())).device


Model = str | PathLike[str] | Contestant


def available() -> bool:
    """Whether the model library (the `hf` extra) is installed."""
    return find_spec("transformers") is not None


def enter(model: Model, device: str = "cpu") -> Contestant:
    """Load a model in float32 (a Contestant is taken as it is), ready to be run."""
    if isinstance(model, Contestant):
        return replace(model, module=model.module.eval())
    _check_device(device)
    path = Path(model)
    if path.suffix == ".lac" and path.is_file():
        module, n_bytes = _unpacked(path)
    elif path.suffix == ".gguf" and path.is_file():
        module, n_bytes = _pretrained(path.parent, gguf_file=path.name), path.stat().st_size
    else:
        module, n_bytes = _pretrained(_folder(path)), weight_bytes(path)
    return Contestant(path.resolve().name, module.to(device).eval(), n_bytes)


def distinct(contestants: Sequence[Contestant], paths: Sequence[Model]) -> list[Contestant]:
    """The same with the whole path for a name where two would share one."""
    names = [c.name for c in contestants]
    return [
        c if names.count(c.name) == 1 or isinstance(p, Contestant) else replace(c, name=str(p))
        for c, p in zip(contestants, paths, strict=True)
    ]


def tokenizer_of(model: Model) -> Any:
    """The tokenizer that lies in a model's folder."""
    if isinstance(model, Contestant):
        raise BadConfig(f"{model.name} is a model in memory; give its tokenizer too")
    _need_library()
    from transformers import AutoTokenizer

    folder = _folder(Path(model))
    with _named_errors(folder, "tokenizer"):
        return AutoTokenizer.from_pretrained(folder)


def in_bfloat16(module: Any) -> Any:
    """A copy with parameters, hence activations, in bfloat16; buffers (RoPE's frequencies) keep float32, as in use."""
    import torch

    twin = copy.deepcopy(module)
    for p in twin.parameters():
        p.requires_grad_(False)
        p.data = p.data.to(torch.bfloat16)
    return twin


def vocabulary(contestant: Contestant, prefix: int) -> int:
    """How many logits the model gives a token."""
    import torch

    with torch.inference_mode():
        return int(contestant.module(input_ids=torch.tensor([[prefix]], device=contestant.device)).logits.shape[-1])


def check_words(path: Model, tokenizer: Any) -> None:
    """Raises BadInput where the folder of a compressed model holds a tokenizer with other words than the reference's."""
    if isinstance(path, Contestant) or not (Path(path) / "tokenizer_config.json").is_file():
        return
    own, words = tokenizer_of(path).get_vocab(), tokenizer.get_vocab()
    if own != words:
        differ = len(set(own.items()) ^ set(words.items()))
        raise BadInput(
            f"{path}: its tokenizer and the reference's differ in {differ:,} words; compare models of one vocabulary"
        )


def weight_bytes(folder: Path) -> int:
    """Bytes of the files with weights in a model's folder; a .bin beside .safetensors is not what is loaded."""
    files = [p for p in folder.iterdir() if p.is_file() and p.suffix in HOLD_WEIGHTS]
    if any(p.suffix == ".safetensors" for p in files):
        files = [p for p in files if p.suffix != ".bin"]
    return sum(p.stat().st_size for p in files)


def _folder(path: Path) -> Path:
    if not path.exists():
        raise BadInput(f"no such model: {path}; name a folder here (one from the Hub must be downloaded first)")
    if not path.is_dir() or not (path / "config.json").is_file():
        raise BadInput(
            f"{path} is no model: a folder with config.json and weights, a .lac made of one, or a .gguf file"
        )
    return path


def _unpacked(path: Path) -> tuple[Any, int]:
    """The model in a packed folder, and the bytes of its archive without what is not weights (tokenizer, read-me)."""
    from .. import files

    said = files.info(path)
    other = [i.packet_bytes for name, i in said.packets if Path(name.partition("/")[0]).suffix not in HOLD_WEIGHTS]  # type: ignore[union-attr]
    with TemporaryDirectory() as scratch:
        folder = Path(files.decompress(path, Path(scratch) / "model"))
        if not folder.is_dir():
            raise BadInput(f"{path} holds one file, not a model's folder; compress the folder with its config.json")
        return _pretrained(_folder(folder), name=str(path)), said.n_bytes - sum(other)


def _pretrained(folder: Path, name: str = "", **which: str) -> Any:
    """transformers' model in float32; raises BadInput where weights are missing, which it would fill with noise."""
    _need_library()
    import torch
    from transformers import AutoModelForCausalLM

    if find_spec(f"{__package__}.hf"):  # lets transformers open folders that laconic quantized
        import_module(f"{__package__}.hf")
    name = name or str(folder / which.get("gguf_file", ""))
    with _named_errors(name, "model"):
        module, said = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, **which
        )
    if said["missing_keys"]:
        some = ", ".join(sorted(said["missing_keys"])[:3])
        raise BadInput(f"{name}: weights of {len(said['missing_keys'])} tensors are missing ({some})")
    return module


@contextmanager
def _named_errors(name: str | Path, what: str) -> Iterator[None]:
    """The library's own complaints about files as one line, its bars and warnings quiet meanwhile."""
    from safetensors import SafetensorError
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # ours is the bar that runs here
    logging.set_verbosity_error()
    try:
        yield
    except Exception as e:
        # The tokenizers library raises plain Exception for a damaged file; what is not about files goes on as it is.
        about_files = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)
        if isinstance(e, CodecError) or not (type(e) is Exception or isinstance(e, about_files)):
            raise
        first = next((line for line in str(e).splitlines() if line.strip()), type(e).__name__)
        raise BadInput(f"{name}: transformers cannot load the {what}: {first}") from e
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _check_device(name: str) -> None:
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as e:
        raise BadConfig(f"device {name!r} cannot be used here: {str(e).splitlines()[0]}") from e


def _need_library() -> None:
    if not available():
        raise BadConfig("transformers is not installed; pip install 'laconic[hf]'")
