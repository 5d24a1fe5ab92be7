"""Compressed folders back as models that run.

prepare   every coded parameter becomes a buffer for its packet, `<param>_packet`, in the model as its config makes it
…         whoever loads the model fills these and the kept tensors
finish    packets become layers on codes, or dense weights
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...core.errors import BadInput, CorruptStream
from ...core.packet import Codec, decode
from ..lean import lean_imports
from . import store
from .network import Matrix, matrices
from .runtime import CodedEmbedding, CodedLinear, CodedStack, Form, levels_of
from .stack import Cutting

__all__ = ["Places", "finish", "load", "prepare"]


class Slot(NamedTuple):
    """A coded matrix in a model. entry: name of its packet in the files. dtype: of the parameter that it stands for."""

    matrix: Matrix
    entry: str
    dtype: torch.dtype

    @property
    def parameter(self) -> str:
        """Name of the parameter in the model."""
        return self.matrix.name.partition("#")[0]


@dataclass
class Places:
    """Where packets go. slots: all of them; tied: name of a parameter -> that of the coded one which it shares."""

    slots: list[Slot] = field(default_factory=list)
    tied: dict[str, str] = field(default_factory=dict)

    def stacks(self) -> dict[str, list[Slot]]:
        """Slots by parameter: one each, or as many as there are experts."""
        out: dict[str, list[Slot]] = {}
        for s in self.slots:
            out.setdefault(s.parameter, []).append(s)
        return out

    def inside(self, name: str) -> str | None:
        """The coded or tied parameter whose runtime form holds the tensor of this name in the state of a finished model."""
        parts = name.split(".")
        for i in range(len(parts), 0, -1):
            head, rest = ".".join(parts[:i]), parts[i:]
            if head in self._names:
                return head
            if rest and rest[0] in ("bias", "matrix") and f"{head}.weight" in self._names:
                return f"{head}.weight"
        return None

    @property
    def _names(self) -> set[str]:
        return {s.parameter for s in self.slots} | set(self.tied)


def load(
    path: str | PathLike[str],
    *,
    bits: float | None = None,
    max_bytes: int | None = None,
    packed: bool = True,
    dtype: torch.dtype | None = None,
    into: nn.Module | None = None,
) -> nn.Module:
    """The model of a compressed folder, in eval mode; `footprint(model)` says what it takes in memory.

    bits, max_bytes: of a folder of stacks (recipe bitstack), only the levels that the budget holds, as `cut` would write them;
    the files are read whole, each packet is cut before it is decoded.
    packed: run on the codes (on the CPU) where the codec has them; else every weight is dense. dtype: of what is dense;
    that of the config if None. into: the module to fill, for folders that are no transformers models.
    Raises BadInput for a folder that laconic did not make or a module that it does not fit, CorruptStream for damage.
    """
    opened = store.Packed(path)
    if into is not None:
        cut = None if bits is None and max_bytes is None else Cutting(opened, bits, max_bytes)
        return _fill(into, opened, packed, dtype, cut)
    with lean_imports():
        import transformers
        from transformers import AutoConfig

        from . import hf
    hf.register()
    if "model_type" not in opened.config:
        raise BadInput(f"{path}: config.json names no transformers model; give the module to fill (into=)")
    config = AutoConfig.from_pretrained(opened.folder)
    config.quantization_config.update(packed=packed, bits=bits, max_bytes=max_bytes)
    name = (getattr(config, "architectures", None) or [""])[0]
    with lean_imports():
        cls = getattr(transformers, name, None) or transformers.AutoModelForCausalLM
    loaded: Any = cls.from_pretrained(opened.folder, config=config, dtype=dtype or "auto", output_loading_info=True)
    model, said = loaded
    if lost := sorted(said["missing_keys"]):
        raise CorruptStream(f"{path}: {len(lost)} tensors of the model are missing ({', '.join(lost[:3])})")
    return model.eval()  # type: ignore[no-any-return]


def _fill(
    model: nn.Module, opened: store.Packed, packed: bool, dtype: torch.dtype | None, cut: Cutting | None
) -> nn.Module:
    model = model if dtype is None else model.to(dtype)
    places = prepare(model, {k: opened.source.shape(k)[0] for k in opened.names}, "cpu")
    if len(places.slots) != len(opened.names):
        known = {s.entry for s in places.slots}
        lost = next(k for k in opened.names if k not in known)
        raise BadInput(f"{opened.folder} has a matrix {store.matrix_of(lost)!r}; {type(model).__name__} has no such")
    state = {k: opened.source[k] for k in (*opened.names, *opened.kept)}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if wrong := sorted({*missing, *unexpected} - set(places.tied)):
        raise BadInput(f"{opened.folder} and {type(model).__name__} differ in {', '.join(wrong[:3])}")
    finish(model, places, opened.codecs, packed, cut)
    return model.eval()


def prepare(model: nn.Module, sizes: Mapping[str, int], device: str = "meta") -> Places:
    """Make room for packets. sizes: bytes of each by its entry; those that the model has no parameter for are left out.

    Works on models without weights (parameters on the meta device). Raises CorruptStream for an incomplete stack of experts.
    """
    known = {m.name: m for m in matrices(model)}
    owners = {name: p for path, m in model.named_modules() for name, p in _own(path, m)}
    places = Places()
    for entry in sizes:
        found = next((known[n] for n in _readings(model, store.matrix_of(entry)) if n in known), None)
        if found is not None:
            places.slots.append(Slot(found, entry, owners[found.name.partition("#")[0]].dtype))
    places.tied = _tied(model, places, owners)
    for name, slots in places.stacks().items():
        module, key = _at(model, name)
        p = module._parameters.pop(key)
        assert p is not None
        _stand_in(module, key, p)
        if slots[0].matrix.expert is None:
            module.register_buffer(f"{key}_packet", _room(sizes[slots[0].entry], device))
            continue
        if sorted(s.matrix.expert or 0 for s in slots) != list(range(p.shape[0])):
            raise CorruptStream(f"{name}: packets of {len(slots)} experts; the model has {p.shape[0]}")
        stack = nn.Module()
        for s in slots:
            stack.register_buffer(str(s.matrix.expert), _room(sizes[s.entry], device))
        module.add_module(f"{key}_packet", stack)
    for name in places.tied:
        module, key = _at(model, name)
        if (p := module._parameters.pop(key, None)) is not None:
            _stand_in(module, key, p)
    return places


def finish(
    model: nn.Module, places: Places, codecs: Mapping[str, Codec], packed: bool, cut: Cutting | None = None
) -> None:
    """Make the packets in the model's buffers, `cut` if that is said, what it runs on. Raises CorruptStream for damage."""
    forms: list[Form] = []
    for name in (*places.stacks(), *places.tied):
        module, key = _at(model, name)
        module.__dict__.pop(key, None)
    for name, slots in places.stacks().items():
        packets, device = _packets(model, name, slots)
        if cut is not None:
            packets = [cut.packet(s.entry, p) for s, p in zip(slots, packets, strict=True)]
        usable = packed and device.type == "cpu"
        made = _coded(model, name, slots, packets, codecs) if usable else None
        if made is None:
            nbytes = _set_dense(model, name, slots, packets, codecs, device)
            reason = "its codec is not made of codes, or its layer needs them dense" if usable else f"on {device.type}"
            forms.append(Form(name, "dense", reason if packed else "as asked for", nbytes))
            continue
        forms.append(Form(name, "packed", *made))
    for name, coded in places.tied.items():
        _tie(model, name, coded)
    model.laconic_forms = forms  # type: ignore[assignment]


# --- the model's side -------------------------------------------------------------------------------------------------


def _own(path: str, module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(f"{path}.{k}" if path else k, p) for k, p in module._parameters.items() if p is not None]


def _at(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that owns the tensor, and its name there."""
    path, _, key = name.rpartition(".")
    return model.get_submodule(path), key


def _room(n_bytes: int, device: str) -> Tensor:
    return torch.empty(n_bytes, dtype=torch.uint8, device=device)


def _stand_in(module: nn.Module, key: str, like: Tensor) -> None:
    """A weight without memory, no parameter of the module, for transformers' code that draws or scales weights at random."""
    weight = torch.empty_like(like, device="meta", requires_grad=False)
    weight._is_hf_initialized = True  # type: ignore[attr-defined]
    module.__dict__[key] = weight


def _readings(model: nn.Module, name: str) -> list[str]:
    """A matrix's names: as saved, and without or with the prefix that models have around what is below their head."""
    prefix = getattr(model, "base_model_prefix", "")
    return [name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}"] if prefix else [name]


def _tied(model: nn.Module, places: Places, owners: Mapping[str, nn.Parameter]) -> dict[str, str]:
    """Parameters without a packet that share one which has; the model is made to forget these ties."""
    coded = {s.parameter for s in places.slots}
    pairs = dict(getattr(model, "all_tied_weights_keys", None) or {})
    links = [*pairs.items()]
    first: dict[int, str] = {}
    for name, p in owners.items():  # modules that share one parameter from the beginning
        if first.setdefault(id(p), name) != name:
            links.append((name, first[id(p)]))
    out: dict[str, str] = {}
    for a, b in links:
        for here, there in ((a, b), (b, a)):
            if there in coded and here not in coded and here in owners:
                out[here] = there
    if pairs:
        model.all_tied_weights_keys = {  # type: ignore[assignment]
            a: b for a, b in pairs.items() if not {a, b} & (coded | set(out))
        }
    return out


# --- packets to layers ------------------------------------------------------------------------------------------------


def _packets(model: nn.Module, name: str, slots: list[Slot]) -> tuple[list[bytes], torch.device]:
    """The packets out of the model's buffers, and where they lay."""
    module, key = _at(model, name)
    entry = f"{key}_packet"
    if slots[0].matrix.expert is None:
        held = [module._buffers.pop(entry)]
    else:
        stack = module._modules.pop(entry)
        assert stack is not None
        slots.sort(key=lambda s: s.matrix.expert or 0)
        held = [stack._buffers[str(s.matrix.expert)] for s in slots]
    for s, packet in zip(slots, held, strict=True):
        if packet is None or packet.device.type == "meta":
            raise CorruptStream(f"{s.entry} is not in the weight files")
    return [bytes(p.cpu().numpy().tobytes()) for p in held if p is not None], held[0].device  # type: ignore[union-attr]


def _decoded(slot: Slot, packet: bytes, read: Callable[[bytes], Any]) -> Any:
    """What `read` makes of the packet, which must be of the matrix's shape. Names the matrix in errors."""
    try:
        found = read(packet)
    except CorruptStream as e:
        raise CorruptStream(f"{slot.entry}: {e}") from e
    shape = None if found is None else tuple(getattr(found, "level", found).shape)
    if shape is not None and shape != slot.matrix.shape:
        raise CorruptStream(f"{slot.entry}: a matrix of {shape}; the model's config wants {slot.matrix.shape}")
    return found


def _coded(
    model: nn.Module, name: str, slots: list[Slot], packets: list[bytes], codecs: Mapping[str, Codec]
) -> tuple[str, int] | None:
    """Put a layer on codes in place, (its layout, its bytes); None where the layer or the codec asks for dense weights."""
    module, key = _at(model, name)
    place = _place(model, module, slots[0])
    if place is None:
        return None
    found = []
    for slot, packet in zip(slots, packets, strict=True):
        found.append(_decoded(slot, packet, lambda data: levels_of(data, codecs)))
        if found[-1] is None:
            return None
    dtype, columns = slots[0].dtype, slots[0].matrix.layout == "columns"
    if place == "stack":
        experts = [CodedLinear.of(f, None, dtype, columns) for f in found]
        module._modules[key] = CodedStack(experts, columns)
        return experts[0].describe(), sum(e.nbytes for e in experts)
    layer: CodedEmbedding | CodedLinear
    if place == "embedding":
        layer = CodedEmbedding.of(found[0], dtype)
    else:
        layer = CodedLinear.of(found[0], module._parameters.get("bias"), dtype, columns)
    _replace(model, name, layer)
    return layer.describe(), layer.nbytes


def _place(model: nn.Module, module: nn.Module, slot: Slot) -> str | None:
    """What can stand for the layer: "linear", "embedding", "stack"; None where code of its own uses the dense weight."""
    if slot.matrix.expert is not None:
        # Only code that can be told to take one expert at a time.
        settable = getattr(model, "_can_set_experts_implementation", None)
        if settable is None or not settable() or not hasattr(type(module).forward, "__wrapped__"):
            return None
        model.set_experts_implementation("eager")  # type: ignore[operator]
        return "stack"
    if type(module) is nn.Embedding:
        return "embedding" if module.max_norm is None else None
    return "linear" if type(module) is nn.Linear or slot.matrix.layout == "columns" else None


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    path = name.rpartition(".")[0]
    parent, _, leaf = path.rpartition(".")
    model.get_submodule(parent)._modules[leaf] = layer.eval()


def _set_dense(
    model: nn.Module, name: str, slots: list[Slot], packets: list[bytes], codecs: Mapping[str, Codec], device: Any
) -> int:
    """Put the dense parameter in place; its bytes."""
    module, key = _at(model, name)
    m = slots[0].matrix
    values = [_decoded(s, p, lambda data: decode(data, codecs=codecs)) for s, p in zip(slots, packets, strict=True)]
    values = [(v.T if m.layout == "columns" else v).to(slots[0].dtype) for v in values]
    value = values[0] if m.expert is None else torch.stack(values)
    if m.layout == "kernel":
        value = value.reshape(module_shape(module, m))
    p = nn.Parameter(value.contiguous().to(device), requires_grad=False)
    module.register_parameter(key, p)
    return p.nbytes


def module_shape(module: nn.Module, m: Matrix) -> tuple[int, ...]:
    """Shape of the kernel of a convolution."""
    groups, c_in, c_out = (int(getattr(module, k)) for k in ("groups", "in_channels", "out_channels"))
    size = tuple(int(k) for k in module.kernel_size)  # type: ignore[union-attr]
    first = (c_in, c_out // groups) if getattr(module, "transposed", False) else (c_out, c_in // groups)
    shape = (*first, *size)
    if m.shape != (shape[0], torch.Size(shape[1:]).numel()):
        raise CorruptStream(f"{m.name}: a matrix of {m.shape} for a kernel of {shape}")
    return shape


def _tie(model: nn.Module, name: str, coded: str) -> None:
    """Give a tied layer what the coded one has."""
    module, key = _at(model, name)
    owner, owner_key = _at(model, coded)
    if isinstance(owner, CodedEmbedding) and type(module) is nn.Linear:
        _replace(model, name, owner.as_linear(module._parameters.get("bias")))
    elif isinstance(owner, CodedEmbedding) and type(module) is nn.Embedding:
        _replace(model, name, owner)
    elif isinstance(owner, CodedLinear):
        _replace(model, name, owner)
    else:
        shared = owner._parameters[owner_key] if owner_key in owner._parameters else owner.weight
        module.register_parameter(key, shared if isinstance(shared, nn.Parameter) else nn.Parameter(shared, False))  # type: ignore[arg-type]
