"""A model as the walk sees it: parameters that come and go, blocks in a chain, and the matrices to be coded.

Everything is found by structure. A matrix is a parameter of a module that multiplies (linear, convolution, embedding, or a
stack of experts); the chain is the longest list of modules of one class; which matrices share an input is seen when it runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...core.errors import BadInput
from ..lean import lean_imports

if TYPE_CHECKING:
    from torch import Tensor, nn

SMALLEST = 1024  # values; a smaller parameter is not worth a codec
NARROWEST = 8  # columns; a matrix with fewer (depthwise convolutions, scalars a channel) is kept as it is


class Matrix(NamedTuple):
    """A matrix to be coded, as a view of a parameter.

    name: the parameter's, with "#e" behind it for expert e of a stack. layout: how the parameter lies, "rows" (n_out, n_in),
    "columns" (n_in, n_out), or "kernel" (n_out, channels, …) of a convolution. role: "matrix", or "embedding" for rows that
    are looked up. shape: (n_out, n_in).
    """

    name: str
    module: str
    param: str
    layout: str
    role: str
    shape: tuple[int, int]
    expert: int | None = None

    @property
    def n_elements(self) -> int:
        """Values of the matrix."""
        return self.shape[0] * self.shape[1]

    def take(self, parameter: Tensor) -> Tensor:
        """The matrix (n_out, n_in) in the parameter; a view where the layout allows it."""
        p = parameter if self.expert is None else parameter[self.expert]
        return p.T if self.layout == "columns" else p.reshape(self.shape)

    def put(self, parameter: Tensor, value: Tensor) -> None:
        """Write the matrix (n_out, n_in) back into the parameter."""
        p = parameter if self.expert is None else parameter[self.expert]
        p.copy_(value.T if self.layout == "columns" else value.reshape(p.shape))


class FolderSource(Mapping[str, Any]):
    """The tensors of a Hugging Face folder by name, read one by one from its safetensors files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = folder / "model.safetensors.index.json"
        if index.exists():
            try:
                files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            except (ValueError, KeyError, AttributeError) as e:
                raise BadInput(f"{index}: not an index of safetensors files: {e}") from None
        else:
            files = sorted(p.name for p in folder.glob("*.safetensors"))
        if not files:
            other = [p.name for p in folder.glob("*.bin")] + [p.name for p in folder.glob("*.gguf")]
            hint = f"; {other[0]} must be saved as safetensors first (save_pretrained)" if other else ""
            raise BadInput(f"{folder}: no safetensors files in it{hint}")
        self._where: dict[str, str] = {}
        for name in files:
            with self._open(name) as f:
                for key in f.keys():  # noqa: SIM118  (no mapping)
                    self._where[key] = name

    @contextmanager
    def _open(self, name: str) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open

        path = self.folder / name
        if not path.exists():
            raise BadInput(f"{path}: the index names this file, but it is not there")
        try:
            with safe_open(path, "pt") as f:
                yield f
        except SafetensorError as e:
            raise BadInput(f"{path}: damaged or cut off: {e}") from None

    def __getitem__(self, name: str) -> Tensor:
        with self._open(self._where[name]) as f:
            return f.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def files(self) -> dict[str, list[str]]:
        """The tensors of each file, by its name."""
        out: dict[str, list[str]] = {}
        for key, name in self._where.items():
            out.setdefault(name, []).append(key)
        return out

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from its file's header."""
        with self._open(self._where[name]) as f:
            return tuple(f.get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Its dtype as torch calls it."""
        return str(self[name].dtype).removeprefix("torch.")


@contextmanager
def _empty_parameters() -> Iterator[None]:
    """Modules made inside have their parameters on the meta device; buffers are real, for many are computed, not stored."""
    from torch import nn

    register = nn.Module.register_parameter

    def empty(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(module, name, param)
        if param is not None and param.device.type != "meta":
            module._parameters[name] = nn.Parameter(param.to("meta"), requires_grad=False)

    nn.Module.register_parameter = empty  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


@lean_imports()
def skeleton(folder: Path, softmax: bool = False) -> Any:
    """The model of a folder without its weights: the class its config names, parameters on the meta device.

    softmax: attention by products and a softmax that can be overheard, not by torch's fused function, which takes half the
    time and no memory for the scores.
    """
    import transformers
    from transformers import AutoConfig
    from transformers.initialization import no_init_weights

    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder}: no config.json; a Hugging Face model folder is wanted")
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as e:
        raise BadInput(f"{folder}/config.json: {str(e).splitlines()[0]}") from None
    if getattr(config, "quantization_config", None):
        method = dict(config.quantization_config).get("quant_method", "?")
        raise BadInput(f"{folder} is quantized already ({method}); start from the original")
    name = (getattr(config, "architectures", None) or [""])[0]
    cls = getattr(transformers, name, None) or transformers.AutoModelForCausalLM
    config._experts_implementation = "eager"  # one linear call an expert: the calls that calibration listens to
    make = cls._from_config if hasattr(cls, "_from_config") else cls.from_config
    # The fused function has no softcap; transformers says so only when it runs.
    softmax = softmax or any(getattr(config.get_text_config(), k, None) for k in ("attn_logit_softcapping", "softcap"))
    with _empty_parameters(), no_init_weights():
        model = make(config, attn_implementation="eager" if softmax else None)
        model.tie_weights()
    config.use_cache = False
    return model.eval()


@lean_imports()
def open_source(folder: Path, model: Any, work: Path) -> Mapping[str, Any]:
    """The folder's tensors under the names that the model has for them.

    Files of older versions of a family name or split them otherwise (experts one by one, renamed heads); transformers
    converts those when it loads, so the model is loaded once and its tensors are spooled to `work` under today's names.
    """
    source = FolderSource(folder)
    names = {n for n, _ in model.named_parameters(remove_duplicate=True)}
    missing = names - set(source)
    if not missing:
        return source
    spool = work / "converted"
    if not (spool / "model.safetensors").exists():
        from safetensors.torch import save_file

        loaded, said = type(model).from_pretrained(folder, dtype="auto", output_loading_info=True)
        if said["missing_keys"]:
            raise BadInput(
                f"the weights lack {min(said['missing_keys'])!r}; the files do not belong to this config.json"
            )
        spool.mkdir(parents=True, exist_ok=True)
        kept = {n: b for n, b in loaded.named_buffers() if n in loaded.state_dict()}
        found = {n: p.detach().contiguous() for n, p in loaded.named_parameters(remove_duplicate=True)}
        save_file({**kept, **found}, spool / "part.safetensors")
        (spool / "part.safetensors").rename(spool / "model.safetensors")
    return FolderSource(spool)


def matrices(model: nn.Module) -> list[Matrix]:
    """Every matrix of a model in the order of its modules; a parameter that two modules share once, under its first name."""
    from torch import nn

    out: list[Matrix] = []
    seen: set[int] = set()
    for path, module in model.named_modules():
        for key, p in module._parameters.items():
            if p is None or id(p) in seen or p.ndim < 2:
                continue
            name = f"{path}.{key}" if path else key
            role = "embedding" if isinstance(module, nn.Embedding) else "matrix"
            if (
                key != "weight"
                and p.ndim == 3
                and p.shape[0] > 1
                and p.shape[1] >= NARROWEST
                and p.shape[2] >= NARROWEST
            ):
                seen.add(id(p))
                columns = bool(getattr(module, "is_transposed", False))
                shape = (p.shape[2], p.shape[1]) if columns else (p.shape[1], p.shape[2])
                layout = "columns" if columns else "rows"
                out += [Matrix(f"{name}#{e}", path, key, layout, role, shape, e) for e in range(p.shape[0])]
                continue
            multiplies = isinstance(module, (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd)) or (
                key == "weight" and p.ndim == 2
            )
            n_out = p.shape[0]
            shape = (n_out, p[0].numel())
            # A linear layer that keeps its weight as (n_in, n_out) says so by its bias or its declared width.
            width = getattr(module, "nf", None)
            layout = "kernel" if p.ndim > 2 else "rows"
            if width is not None and p.ndim == 2 and p.shape[1] == width:
                layout, shape = "columns", (p.shape[1], p.shape[0])
            if not multiplies or p.numel() < SMALLEST or min(shape) < NARROWEST:
                continue
            seen.add(id(p))
            out.append(Matrix(name, path, key, layout, role, shape))
    return out


def chain(model: nn.Module) -> tuple[str, list[str]] | None:
    """(name of the list, names of its modules): the list of like modules with most parameters, if it has over three tenths of
    those that are not embeddings and no second list comes near it; None for a model that is not one chain of blocks."""
    from torch import nn

    def size(m: nn.Module) -> int:
        return sum(p.numel() for p in m.parameters())

    found = [
        (size(m), path, [f"{path}.{i}" for i in range(len(m))])
        for path, m in model.named_modules()
        if isinstance(m, nn.ModuleList) and len(m) > 1 and len({type(b) for b in m}) == 1
    ]
    outer = [f for f in found if not any(f[1].startswith(o[1] + ".") for o in found)]
    if not outer:
        return None
    looked_up = sum(size(m) for m in model.modules() if isinstance(m, nn.Embedding))
    outer.sort(reverse=True)
    most, path, names = outer[0]
    alone = len(outer) == 1 or outer[1][0] < 0.1 * most
    return (path, names) if alone and most > 0.3 * max(size(model) - looked_up, 1) else None


@dataclass
class Network:
    """A model whose parameters are in `source` until a module needs them.

    overlay: parameters that were coded already, name -> what makes the tensor; they come before the source's.
    """

    model: Any
    source: Mapping[str, Any]
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.overlay: dict[str, Any] = {}
        self._absent = {
            f"{path}.{k}" if path else k: p for path, m in self.model.named_modules() for k, p in m._parameters.items()
        }

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Name of every parameter -> the name under which the source has it."""
        first: dict[int, str] = {}
        out: dict[str, str] = {}
        for name, p in self._absent.items():
            if p is None:
                continue
            stored = name if name in self.source else first.get(id(p))
            if stored is None:
                stored = next((n for n, q in self._absent.items() if q is p and n in self.source), None)
            if stored is None:
                raise BadInput(f"the weights lack {name!r}; the files do not belong to this config.json")
            out[name] = first.setdefault(id(p), stored)
        return out

    @cached_property
    def every(self) -> list[Matrix]:
        """All matrices, the kept ones with them."""
        return matrices(self.model)

    @cached_property
    def matrices(self) -> list[Matrix]:
        """The matrices to code: all but those whose name matches a pattern of `keep`."""
        for pattern in self.keep:
            if not any(fnmatch(m.name, pattern) or pattern in m.name for m in self.every):
                raise BadInput(f"--keep {pattern}: no matrix has such a name; one is {self.every[0].name!r}")
        return [m for m in self.every if not any(fnmatch(m.name, k) or k in m.name for k in self.keep)]

    def check(self) -> None:
        """That the files hold every parameter in its shape. Raises BadInput."""
        shape = getattr(self.source, "shape", lambda name: tuple(self.source[name].shape))
        for name, stored in self.aliases.items():
            want = tuple(self._absent[name].shape)
            if (seen := shape(stored)) != want:
                raise BadInput(f"{stored}: shape {seen} in the file, {want} by config.json")
        if not self.matrices:
            raise BadInput(f"nothing to compress: no matrix of {SMALLEST:,} values or more that is not kept")

    @cached_property
    def blocks(self) -> list[str]:
        """Names of the blocks in order; empty where the model is not one chain."""
        found = chain(self.model)
        return found[1] if found else []

    def module(self, name: str) -> Any:
        """A module by its dotted name; "" is the model."""
        return self.model.get_submodule(name)

    def below(self, name: str) -> list[Matrix]:
        """The matrices of a module and what is in it."""
        return [m for m in self.matrices if m.module == name or m.module.startswith(name + ".") or not name]

    def outside(self) -> list[Matrix]:
        """The matrices that are in no block."""
        return [m for m in self.matrices if not any(m.module.startswith(b + ".") or m.module == b for b in self.blocks)]

    def value(self, name: str) -> Tensor:
        """A parameter in float32, as coded if it has been."""
        import torch

        stored = self.aliases[name]
        t = self.overlay[stored]() if stored in self.overlay else self.source[stored]
        want = tuple(self._absent[name].shape)
        if tuple(t.shape) != want:
            raise BadInput(f"{stored}: shape {tuple(t.shape)} in the file, {want} by the config")
        if t.is_floating_point() and not bool(torch.isfinite(t).all()):
            raise BadInput(f"{stored}: {int((~torch.isfinite(t)).sum())} of {t.numel()} values are NaN or Inf")
        return t.to(torch.float32)

    def load(self, name: str, deep: bool = True) -> None:
        """Give a module (with `deep` all that is in it) its parameters."""
        from torch import nn

        top = self.module(name)
        for path, m in top.named_modules(prefix=name) if deep else [(name, top)]:
            for key in m._parameters:
                full = f"{path}.{key}" if path else key
                if self._absent[full] is not None:
                    m._parameters[key] = nn.Parameter(self.value(full), requires_grad=False)

    def drop(self, name: str, deep: bool = True) -> None:
        """Take the parameters away again."""
        top = self.module(name)
        for path, m in top.named_modules(prefix=name) if deep else [(name, top)]:
            for key in m._parameters:
                m._parameters[key] = self._absent[f"{path}.{key}" if path else key]

    @contextmanager
    def loaded(self, name: str) -> Iterator[Any]:
        """The module with its parameters."""
        self.load(name)
        try:
            yield self.module(name)
        finally:
            self.drop(name)

    @contextmanager
    def bypassed(self, forwards: Mapping[str, Any]) -> Iterator[None]:
        """The blocks run the given functions instead of their own; modules outside have their parameters while they run."""
        handles = []
        inside = tuple(b + "." for b in self.blocks)
        for path, m in self.model.named_modules():
            if m._parameters and path not in forwards and not path.startswith(inside):
                handles.append(m.register_forward_pre_hook(lambda m, a, path=path: self.load(path, deep=False)))
                handles.append(m.register_forward_hook(lambda m, a, o, path=path: self.drop(path, deep=False)))
        for name, forward in forwards.items():
            self.module(name).forward = forward
        try:
            yield
        finally:
            for h in handles:
                h.remove()
            for name in forwards:
                del self.module(name).forward
