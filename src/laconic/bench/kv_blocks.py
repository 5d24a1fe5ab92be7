"""The caches of llama.cpp, as a cache of transformers: blocks of 32 along a head, quantized once as tokens come.

Keys are stored behind RoPE. The bytes are those of the formats: a float16 scale (and a float16 minimum) and the codes of 32
values. `rotate` puts a Hadamard matrix before the blocks and takes it back behind them, as llama.cpp's and ik_llama's newer
caches do.

Source: ggml's `quantize_row_{q4_0,q4_1,q5_0,q5_1,q8_0}_ref` and `quantize_row_iq4_nl`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.errors import BadConfig, unknown

if TYPE_CHECKING:
    import torch

BLOCK = 32
NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class Format:
    """A block format. encode: blocks (…, 32) float32 → (codes uint8 (…, 32), head float16 (…, n_head)); decode: back.

    bits: of a code; n_head: float16 numbers of a block.
    """

    bits: int
    n_head: int
    encode: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    decode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

    @property
    def block_bytes(self) -> int:
        """Bytes of 32 values."""
        return 2 * self.n_head + BLOCK * self.bits // 8


def _symmetric(bits: int) -> Format:
    """q4_0, q5_0: the value furthest from zero is code 0, so that its sign gets the longer side."""
    half = 1 << (bits - 1)

    def encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale = x.gather(-1, x.abs().argmax(-1, keepdim=True)) / -half
        return (x * _inverse(scale) + half + 0.5).clamp(0, 2 * half - 1).byte(), scale.half()

    return Format(bits, 1, encode, lambda codes, head: (codes.float() - half) * head.float())


def _affine(bits: int) -> Format:
    """q4_1, q5_1: from the least to the greatest."""
    top = (1 << bits) - 1

    def encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        low = x.amin(-1, keepdim=True)
        scale = (x.amax(-1, keepdim=True) - low) / top
        codes = ((x - low) * _inverse(scale) + 0.5).clamp(0, top).byte()
        return codes, _cat((scale, low)).half()

    return Format(bits, 2, encode, lambda codes, head: codes.float() * head[..., :1].float() + head[..., 1:].float())


def _bytes() -> Format:
    """q8_0: signed bytes."""

    def encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        scale = x.abs().amax(-1, keepdim=True) / 127
        return (x * _inverse(scale)).round().to(torch.int8).view(torch.uint8), scale.half()

    return Format(8, 1, encode, lambda codes, head: _signed(codes) * head.float())


def _nonlinear() -> Format:
    """iq4_nl: sixteen fixed levels, the scale fitted with x² for weights."""

    def levels() -> torch.Tensor:
        import torch

        return torch.tensor(NONLINEAR, dtype=torch.float32)

    def encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        table = levels()
        first = x.gather(-1, x.abs().argmax(-1, keepdim=True)) / NONLINEAR[0]
        codes = torch.bucketize(x * _inverse(first), (table[1:] + table[:-1]) / 2)
        q, weight = table[codes], x * x
        norm = (weight * q * q).sum(-1, keepdim=True)
        return codes.byte(), ((weight * q * x).sum(-1, keepdim=True) * _inverse(norm)).half()

    return Format(4, 1, encode, lambda codes, head: levels()[codes.long()] * head.float())


def _signed(codes: torch.Tensor) -> torch.Tensor:
    import torch

    return codes.view(torch.int8).float()


def _inverse(x: torch.Tensor) -> torch.Tensor:
    return x.reciprocal().where(x != 0, x)


def _cat(parts: Any) -> torch.Tensor:
    import torch

    return torch.cat(tuple(parts), -1)


FORMATS = {
    "q4_0": _symmetric(4),
    "q4_1": _affine(4),
    "iq4_nl": _nonlinear(),
    "q5_0": _symmetric(5),
    "q5_1": _affine(5),
    "q8_0": _bytes(),
}


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """(…, 32) codes below 2^bits as (…, 4·bits) bytes as ggml lays them: fifth bits, then nibbles of the two halves."""
    if bits == 8:
        return codes
    low = codes & 15
    nibbles = low[..., :16] | (low[..., 16:] << 4)
    if bits == 4:
        return nibbles
    place = _places(codes)
    high = ((codes >> 4).reshape(*codes.shape[:-1], 4, 8) << place).sum(-1).to(codes.dtype)
    return _cat((high, nibbles))


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of `pack`."""
    if bits == 8:
        return packed
    nibbles = packed[..., -16:]
    low = _cat((nibbles & 15, nibbles >> 4))
    if bits == 4:
        return low
    high = (packed[..., :4, None] >> _places(packed)) & 1
    return low | (high.reshape(low.shape) << 4)


def _places(like: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.arange(8, dtype=like.dtype, device=like.device)


class _Blocks:
    """The history of keys or of values: (n_windows, n_heads, n_tokens, n_blocks, block_bytes) uint8.

    A token is decoded once, when it is stored, and `decoded` is read at every later step: the same values, sooner. That
    makes this cache one to measure loss with, not time or memory; its bytes are those of the blocks.
    """

    def __init__(self, form: Format, rotation: torch.Tensor | None) -> None:
        self.form, self.rotation = form, rotation
        self.blocks: torch.Tensor | None = None
        self.decoded: torch.Tensor | None = None

    def append(self, x: torch.Tensor) -> None:
        import torch

        turned = x.float() if self.rotation is None else x.float() @ self.rotation
        codes, head = self.form.encode(turned.unflatten(-1, (-1, BLOCK)))
        new = _cat((head.contiguous().view(torch.uint8), pack(codes, self.form.bits)))
        old = () if self.blocks is None else (self.blocks,)
        self.blocks = torch.cat((*old, new), 2)
        read = () if self.decoded is None else (self.decoded,)
        self.decoded = torch.cat((*read, self.decode(new).to(x.dtype)), 2)

    def decode(self, blocks: torch.Tensor) -> torch.Tensor:
        import torch

        n = 2 * self.form.n_head
        head = blocks[..., :n].contiguous().view(torch.float16)
        x = self.form.decode(unpack(blocks[..., n:], self.form.bits), head).flatten(-2)
        return x if self.rotation is None else x @ self.rotation.T


def hadamard(size: int) -> torch.Tensor:
    """Sylvester's, orthonormal. Raises BadConfig where the size is no power of two."""
    import torch

    if size < 1 or size & (size - 1):
        raise BadConfig(f"a head of {size} has no Hadamard matrix of Sylvester's kind; only powers of two do")
    h = torch.ones(1, 1)
    while len(h) < size:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)))
    return h / size**0.5


def blocks_cache(config: Any, keys: str, values: str | None = None, *, rotate: bool = False) -> Any:
    """A cache in block formats; `values` are in the format of the keys unless another is named.

    The first call (the prefill) answers with what it was given; every later one with what is stored.
    Raises BadConfig: a head that 32 does not divide, layers that are not full attention.
    """
    from transformers import Cache
    from transformers.cache_utils import DynamicLayer, get_layer_types_and_kwargs

    config = config.get_text_config(decoder=True)
    kinds = set(get_layer_types_and_kwargs(config)[0])
    if kinds != {"full_attention"}:
        raise BadConfig(f"layers of kinds {sorted(kinds)}; these caches are for full attention alone")
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if head % BLOCK:
        raise BadConfig(f"heads of {head} values; blocks of {BLOCK} must divide them")
    formats = []
    for name in (keys, values or keys):
        if name not in FORMATS:
            raise unknown("block format", name, list(FORMATS))
        formats.append(FORMATS[name])
    rotation = hadamard(head) if rotate else None

    class BlocksLayer(DynamicLayer):
        """Keys and values as blocks; nothing of them is kept besides."""

        is_croppable = False

        def __init__(self) -> None:
            super().__init__()
            self.stored = [_Blocks(form, rotation) for form in formats]

        def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True

        def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            first = self.get_seq_length() == 0
            if first:
                self.lazy_initialization(key_states, value_states)
            for part, new in zip(self.stored, (key_states, value_states), strict=True):
                part.append(new)
            if first:
                return key_states, value_states
            return tuple(part.decoded for part in self.stored)

        def get_seq_length(self) -> int:
            blocks = self.stored[0].blocks
            return 0 if blocks is None else blocks.shape[2]

    class BlocksCache(Cache):
        """Its `nbytes` are those of the blocks."""

        @property
        def nbytes(self) -> int:
            return sum(p.blocks.numel() for layer in self.layers for p in layer.stored if p.blocks is not None)

    return BlocksCache(layers=[BlocksLayer() for _ in range(config.num_hidden_layers)])
