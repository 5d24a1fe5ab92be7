"""transformers opens compressed folders: `AutoModelForCausalLM.from_pretrained(OUT)` and every other class, by its quantizer.

`import laconic` sees to it that this is registered as soon as transformers' quantizers are there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ...core.errors import BadInput, CorruptStream
from . import store
from .network import FolderSource
from .stack import Cutting

__all__ = ["LaconicConfig", "LaconicQuantizer", "register"]


class LaconicConfig(QuantizationConfigMixin):
    """quantization_config of a compressed folder; see `store` for its fields.

    packed: run on the codes; False: decode every weight to the model's dtype. bits, max_bytes: a budget to which stacks of
    levels are cut. To choose, set it before the model is made:
    `config = AutoConfig.from_pretrained(OUT); config.quantization_config["packed"] = False`.
    """

    def __init__(
        self, packed: bool = True, bits: float | None = None, max_bytes: int | None = None, **said: Any
    ) -> None:
        self.quant_method = store.METHOD  # type: ignore[assignment]  # not one of transformers' own
        self.packed, self.bits, self.max_bytes = packed, bits, max_bytes
        for key, value in said.items():
            setattr(self, key, value)

    def to_dict(self) -> dict[str, Any]:
        """What belongs into a config.json: how this model is run does not."""
        return {k: v for k, v in super().to_dict().items() if k not in ("packed", "bits", "max_bytes")}


class LaconicQuantizer(HfQuantizer):
    """Puts packets into the model while transformers loads it, and layers on codes in their place at the end."""

    requires_calibration = True  # a model is compressed by `laconic compress`, not while it is loaded

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Raises CorruptStream for a quantization_config that this laconic cannot read."""
        said = self.quantization_config.to_dict()
        if said.get("format") != store.FORMAT:
            raise CorruptStream(
                f"format {said.get('format')} of quantization_config; this laconic reads {store.FORMAT}"
            )
        self.codecs = store.read_codecs(said)

    def _process_model_before_weight_loading(self, model: Any, checkpoint_files: Any = None, **kwargs: Any) -> Any:
        from .loading import prepare

        if not checkpoint_files or not str(checkpoint_files[0]).endswith(".safetensors"):
            raise BadInput("a compressed model is read from its safetensors files; name the folder")
        source = FolderSource(Path(checkpoint_files[0]).parent)
        self.source, self.cut = source, None
        said: Any = self.quantization_config
        if said.bits is not None or said.max_bytes is not None:
            self.cut = Cutting(store.Packed(source.folder), said.bits, said.max_bytes)
        self.places = prepare(model, {k: source.shape(k)[0] for k in source if store.is_packet(k)})
        model._keys_to_ignore_on_load_unexpected = {
            *(model._keys_to_ignore_on_load_unexpected or ()),
            re.escape(store.ORDER),
        }
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        from .loading import finish

        finish(model, self.places, self.codecs, bool(getattr(self.quantization_config, "packed", True)), self.cut)
        return model

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The packets as they were loaded, read again from their files, and the kept tensors as they are now."""
        state: dict[str, Any] = {}
        for name, tensor in model.state_dict().items():
            coded = self.places.inside(name)
            if coded is None:
                state[name] = tensor
            elif (
                name.endswith(".bias")
                and (bias := f"{coded.rpartition('.')[0]}.bias") not in model.all_tied_weights_keys
            ):
                state[bias] = tensor
        entry = self.source.__getitem__ if self.cut is None else self.cut.entry
        for slot in self.places.slots:
            state[store.entry(slot.matrix)] = entry(slot.entry)
        if store.ORDER in self.source:
            state[store.ORDER] = entry(store.ORDER)
        return state, {}

    def is_serializable(self) -> bool:
        """Packets are kept in their files."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Codes are not trained; what is around them can be."""
        return False


def register() -> None:
    """Make the quantizer known to transformers, once."""
    if store.METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(store.METHOD)(LaconicQuantizer)
    if store.METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(store.METHOD)(LaconicConfig)


register()
