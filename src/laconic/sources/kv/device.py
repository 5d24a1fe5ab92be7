"""Coded tokens of a model on a GPU: the pages of `PagedPast`, in the GPU's memory, made and read there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.errors import BadConfig
from ...quantize.coordinates import BLOCK
from .past import Page, PagedPast, past_for

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ...core.stage import Stage


class DevicePast(PagedPast):
    """A `PagedPast` whose pages are tensors on a device, laid out for it.

    Codes are those that the CPU finds, but for values that lie within a rounding of a threshold. Pages of one append share
    memory, which is free when the last of them is let go of.
    """

    def __init__(self, codec: Stage, n_heads: int, d: int, device: torch.device) -> None:
        import torch

        from ...kernels.device_coordinates import Layout, padded_thresholds
        from ...kernels.triton_attend import DeviceDecoder

        super().__init__(codec, n_heads, d)
        self.device = device
        self.analysis, self.shift = self.analysis.to(device), self.shift.to(device)
        self.layout = Layout.of(self.tables.widths, device)
        rows = [self.tables.of_head(h) for h in range(n_heads)]
        between = [[(x[1:] + x[:-1]) / 2 for x in head] for head in rows]
        self.thresholds = torch.from_numpy(padded_thresholds(between)).to(device)
        sizes = self.tables.sizes
        starts = (np.cumsum(sizes) - sizes.reshape(-1)).reshape(sizes.shape)
        self.starts, self.levels = (torch.from_numpy(a).to(device) for a in (starts, self.tables.levels))
        self.device_decoder = DeviceDecoder.of(self.decoder, device)
        self.placed: dict[int, Tensor] = {}  # addresses of a sequence's pages, as the kernel last had them

    def _code(self, coordinates: Sequence[Tensor]) -> None:
        import torch

        from ...kernels.device_coordinates import ranks

        for b, y in enumerate(coordinates):
            norms = None
            if self.codes.scale != "none":
                norms = y.double().square().mean(-1).sqrt().half()
                factor = norms.float()[..., None]
                y = torch.where(factor > 0, y / factor, 0.0)
            self._lay(b, ranks(y, self.thresholds), norms)
        self.placed.clear()

    def _lay(self, b: int, index: Tensor, norms: Tensor | None) -> None:
        """Write codes (n_heads, n, r), with what a block that is not full already has."""
        import torch

        pages = self.pages[b]
        if begun := (self.n_tokens - self.first) % BLOCK:
            last = pages.pop()
            index = torch.cat([self.layout.unpack(last.codes[None])[:, :begun], index], 1)
            norms = None if norms is None else torch.cat([last.norms[:, :begun], norms], 1)
        blocks = self.layout.pack(index)
        if norms is not None:
            norms = torch.nn.functional.pad(norms, (0, len(blocks) * BLOCK - norms.shape[1]))
            norms = norms.reshape(len(norms), -1, BLOCK).transpose(0, 1).contiguous()
        for i, codes in enumerate(blocks):
            factors = None if norms is None else norms[i]
            pages.append(Page(codes, factors, (codes.data_ptr(), 0 if factors is None else factors.data_ptr())))

    def coded(self, b: int) -> Any:
        """The codes of one sequence, for `kernels.triton_attend`; the first token is `first`."""
        import torch

        from ...kernels.triton_attend import DeviceCoded

        if (places := self.placed.get(b)) is None:
            places = torch.tensor([p.at for p in self.pages[b]], dtype=torch.int64).reshape(-1, 2)
            places = self.placed[b] = places.mT.contiguous().to(self.device)
        scales = places[1] if self.codes.scale != "none" else places[1, :0]
        return DeviceCoded(self.device_decoder, places[0], scales)

    def turning(self, rope: Any) -> Any:
        from ...kernels.triton_attend import DeviceRope

        return DeviceRope.of(self.device_decoder, rope)

    def attend(
        self, b: int, q: Tensor, values: PagedPast, n: int, seen: Tensor | None, turn: Any
    ) -> tuple[Tensor, ...]:
        from ...kernels.triton_attend import attend_triton

        return attend_triton(q.contiguous(), self.coded(b), values.coded(b), n, seen, turn)

    def on_host(self, page: Page) -> tuple[np.ndarray, np.ndarray | None]:
        from ...kernels.coordinates import pack_heads

        index = self.layout.unpack(page.codes[None]).cpu().numpy()
        return pack_heads(index, self.tables.widths), None if page.norms is None else page.norms.cpu().numpy()

    def tile(self, start: int, stop: int) -> Tensor:
        import torch

        first, last = (start - self.first) // BLOCK, -(-(stop - self.first) // BLOCK)
        skip = start - self.first - first * BLOCK
        out = []
        for pages in self.pages:
            index = self.layout.unpack(torch.stack([p.codes for p in pages[first:last]]))
            y = self.levels[self.starts[:, None] + index.long()]
            if self.codes.scale != "none":
                y = y * torch.cat([p.norms for p in pages[first:last]], 1)[..., None].float()
            out.append(y[:, skip : skip + stop - start])
        synthesis = torch.from_numpy(self.decoder.synthesis.astype(np.float32)).to(self.device)
        return torch.stack(out) @ synthesis + self.device_decoder.mean[:, None]

    def select(self, index: Sequence[int]) -> None:
        super().select(index)
        self.placed.clear()

    def crop(self, n_tokens: int) -> None:
        super().crop(n_tokens)
        self.placed.clear()

    def forget(self, before: int) -> None:
        super().forget(before)
        self.placed.clear()


def past_on(device: torch.device | str, codec: Stage, n_heads: int, d: int, learns: str) -> Any:
    """The store that suits the codec where keys and values are on a device.

    Raises BadConfig: on a GPU, a codec whose codes the kernels cannot read as they lie, or no Triton.
    """
    import torch

    from ...kernels.triton_attend import has_triton

    device = torch.device(device)
    found = past_for(codec, n_heads, d, learns)
    if device.type == "cpu":
        return found
    if not isinstance(found, PagedPast) or not has_triton():
        why = "codes of this recipe are read on the CPU alone" if has_triton() else "Triton is not installed"
        raise BadConfig(
            f"keys on {device}: {why}; auto, turboquant and kv-pair with Triton run there, or move the model"
        )
    return DevicePast(codec, n_heads, d, device)
