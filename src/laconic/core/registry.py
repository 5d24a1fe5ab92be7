"""The one list of parts and recipes, as strings that are imported when asked for, and configurations derived from fields."""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from .errors import BadConfig, unknown
from .stage import Part

# name in configurations -> where the class is. A name is for ever: packets hold it.
PARTS: dict[str, str] = {
    "chain": "laconic.core.combine:Chain",
    "residual": "laconic.core.combine:Residual",
    "partition": "laconic.core.combine:Partition",
    "conditional": "laconic.core.combine:Conditional",
    "error-feedback": "laconic.core.combine:ErrorFeedback",
    "error-control": "laconic.core.combine:ErrorControl",
    "predictive": "laconic.core.combine:Predictive",
    "unit": "laconic.quantize.base:Unit",
    "nearest": "laconic.quantize.base:Nearest",
    "quantizer": "laconic.quantize.base:Quantizer",
    "rans": "laconic.entropy.coders:Rans",
    "histogram": "laconic.entropy.models:Histogram",
    "trained": "laconic.entropy.models:Trained",
    "gaussian-table": "laconic.entropy.models:GaussianTable",
    "laplace-table": "laconic.entropy.models:LaplaceTable",
    "pack": "laconic.entropy.coders:Pack",
    "adaptive": "laconic.entropy.coders:Adaptive",
    "escape": "laconic.entropy.coders:Escape",
    "half": "laconic.transforms.cast:Half",
    "sign-sketch": "laconic.quantize.sketch:SignSketch",
    "byte-mix": "laconic.entropy.bytemix:ByteMix",
    "context-mix": "laconic.entropy.contextmix:ContextMix",
    "partial-match": "laconic.entropy.partialmatch:PartialMatch",
    "coefficient-coder": "laconic.entropy.coefficients:CoefficientCoder",
    "rdo-quantizer": "laconic.quantize.rdo:RdoQuantizer",
    "step": "laconic.quantize.rdo:Step",
    "rate-target": "laconic.quantize.rdo:RateTarget",
    "opponent-planes": "laconic.sources.images.stages:OpponentPlanes",
    "deblock": "laconic.sources.images.stages:Deblock",
    "byte-planes": "laconic.entropy.planes:BytePlanes",
    "rows": "laconic.entropy.planes:Rows",
    "field-planes": "laconic.entropy.fields:FieldPlanes",
    "sparing": "laconic.entropy.fields:Sparing",
    "circuit": "laconic.entropy.circuits:Circuit",
    "difference": "laconic.entropy.fields:Difference",
    "entropy-coded-trellis": "laconic.quantize.dependent:EntropyCodedTrellis",
    "segment-codes": "laconic.quantize.segments:SegmentCodes",
    "autoregressive": "laconic.quantize.autoregressive:Autoregressive",
    "masked": "laconic.quantize.masked:Masked",
    "fixed-step": "laconic.quantize.fixed_step:FixedStep",
    "feedback-trellis": "laconic.quantize.feedback_trellis:FeedbackTrellis",
    "trellis": "laconic.quantize.trellis:Trellis",
    "learned-trellis": "laconic.quantize.trellis:LearnedTrellis",
    "bit-stack": "laconic.quantize.bitstack:BitStack",
    "factors": "laconic.quantize.factors:Factors",
    "column-vq": "laconic.quantize.columns:ColumnVQ",
    "vq": "laconic.quantize.vector:VQ",
    "sign-vq": "laconic.quantize.vector:SignVQ",
    "additive-vq": "laconic.quantize.vector:AdditiveVQ",
    "e8": "laconic.quantize.lattice:E8",
    "e8-ball": "laconic.quantize.lattice:E8Ball",
    "pyramid": "laconic.quantize.pyramid:Pyramid",
    "pyramid-code": "laconic.quantize.pyramid:PyramidCode",
    "shape-gain": "laconic.quantize.shape_gain:ShapeGain",
    "shape-gain-code": "laconic.quantize.shape_gain:ShapeGainCode",
    "fsq": "laconic.quantize.latent:FSQ",
    "lfq": "laconic.quantize.latent:LFQ",
    "unit-norm": "laconic.transforms.scaling:UnitNorm",
    "center": "laconic.transforms.scaling:Center",
    "remove-mean": "laconic.transforms.scaling:RemoveMean",
    "scaling": "laconic.transforms.scaling:Scaling",
    "smoothing": "laconic.transforms.scaling:Smoothing",
    "random-rotation": "laconic.transforms.rotation:RandomRotation",
    "hadamard": "laconic.transforms.rotation:Hadamard",
    "head-ranks": "laconic.quantize.ranks:HeadRanks",
    "joint-latents": "laconic.transforms.joint:JointLatents",
    "klt": "laconic.transforms.klt:KLT",
    "slice-rotation": "laconic.transforms.slices:SliceRotation",
    "low-rank": "laconic.transforms.klt:LowRank",
    "dct": "laconic.transforms.dct:DCT",
    "block-dct": "laconic.transforms.dct:BlockDCT",
    "wavelet-97": "laconic.transforms.wavelet:Wavelet97",
    "wavelet-53": "laconic.transforms.wavelet:Wavelet53",
    "permutation": "laconic.transforms.reorder:Permutation",
    "reorder": "laconic.transforms.reorder:Reorder",
    "top-k": "laconic.transforms.select:TopK",
    "threshold": "laconic.transforms.select:Threshold",
    "sparse-levels": "laconic.quantize.sparse:SparseLevels",
    "uniform": "laconic.quantize.codebooks:Uniform",
    "lloyd-max": "laconic.quantize.codebooks:LloydMax",
    "normal-float": "laconic.quantize.codebooks:NormalFloat",
    "minifloat": "laconic.quantize.codebooks:Minifloat",
    "power": "laconic.quantize.codebooks:Power",
    "log": "laconic.quantize.codebooks:Log",
    "additive-powers": "laconic.quantize.codebooks:AdditivePowers",
    "k-means": "laconic.quantize.codebooks:KMeans",
    "group-scale": "laconic.quantize.scales:GroupScale",
    "whole": "laconic.quantize.scales:Whole",
    "each": "laconic.quantize.scales:Each",
    "along": "laconic.quantize.scales:Along",
    "abs-max": "laconic.quantize.scales:AbsMax",
    "min-max": "laconic.quantize.scales:MinMax",
    "rms": "laconic.quantize.scales:Rms",
    "abs-mean": "laconic.quantize.scales:AbsMean",
    "percentile": "laconic.quantize.scales:Percentile",
    "search": "laconic.quantize.scales:Search",
    "least-squares": "laconic.quantize.scales:LeastSquares",
    "float": "laconic.quantize.scales:Float",
    "power-of-two": "laconic.quantize.scales:PowerOfTwo",
    "two-level": "laconic.quantize.scales:TwoLevel",
    "bilevel": "laconic.quantize.scales:Bilevel",
    "sensitive-rows": "laconic.quantize.rows:SensitiveRows",
    "dual-scale": "laconic.quantize.dual:DualScale",
    "decoupled": "laconic.quantize.decoupled:Decoupled",
    "channel-range": "laconic.transforms.channels:ChannelRange",
    "channel-separable": "laconic.transforms.channels:ChannelSeparable",
    "join-heads": "laconic.transforms.channels:JoinHeads",
    "keep-largest": "laconic.transforms.prune:KeepLargest",
    "matched": "laconic.quantize.matched:Matched",
    "beyond": "laconic.quantize.outliers:Beyond",
    "extremes": "laconic.quantize.outliers:Extremes",
    "salient": "laconic.quantize.tokens:Salient",
    "wide-channels": "laconic.quantize.tokens:WideChannels",
    "centred-sign": "laconic.quantize.centred:CentredSign",
    "low-rank-code": "laconic.quantize.lowrank:LowRankCode",
    "nested-codes": "laconic.quantize.nested:NestedCodes",
    "head-basis": "laconic.transforms.heads:HeadBasis",
    "one-head": "laconic.transforms.heads:OneHead",
    "coordinate-codes": "laconic.quantize.coordinates:CoordinateCodes",
    "law-codes": "laconic.quantize.coordinates:LawCodes",
    "range-codes": "laconic.quantize.coordinates:RangeCodes",
    "column-alphabets": "laconic.quantize.alphabets:ColumnAlphabets",
    "integer-zero": "laconic.quantize.zeros:IntegerZero",
    "super-block": "laconic.quantize.kquant:SuperBlock",
    "signed-block": "laconic.quantize.kquant_signed:SignedBlock",
    "stochastic": "laconic.quantize.rounding:Stochastic",
    "coordinate-descent": "laconic.quantize.rounding:CoordinateDescent",
    "feedback": "laconic.quantize.rounding:Feedback",
    "reconstruct": "laconic.quantize.reconstruct:Reconstruct",
    "halves": "laconic.quantize.rules:Halves",
    "tail": "laconic.quantize.rules:Tail",
    "largest": "laconic.quantize.rules:Largest",
    "most-sensitive": "laconic.quantize.rules:MostSensitive",
}


@dataclass(frozen=True)
class Recipe:
    """A line of the table of systems.

    target: "module:function"; the function's docstring is the recipe's card. domain: what it is for.
    """

    target: str
    domain: str


RECIPES: dict[str, Recipe] = {
    "auto": Recipe("laconic.recipes.weights.auto:auto", "weights"),
    "ectcq": Recipe("laconic.recipes.weights.ectcq:ectcq", "weights"),
    "qtip": Recipe("laconic.recipes.weights.qtip:qtip", "weights"),
    "q-palette": Recipe("laconic.recipes.weights.q_palette:q_palette", "weights"),
    "turboquant": Recipe("laconic.recipes.vectors.turboquant:turboquant", "vectors"),
    "rvq": Recipe("laconic.recipes.vectors.rvq:rvq", "vectors"),
    "klt-trellis": Recipe("laconic.recipes.vectors.klt_trellis:klt_trellis", "vectors"),
    "klt-levels": Recipe("laconic.recipes.vectors.klt_levels:klt_levels", "vectors"),
    "ar-scalar": Recipe("laconic.recipes.vectors.ar_scalar:ar_scalar", "vectors"),
    "ar-net": Recipe("laconic.recipes.vectors.ar_net:ar_net", "vectors"),
    "pq": Recipe("laconic.recipes.vectors.pq:pq", "vectors"),
    "opq": Recipe("laconic.recipes.vectors.opq:opq", "vectors"),
    "jpq": Recipe("laconic.recipes.vectors.opq:jpq", "vectors"),
    "scalar": Recipe("laconic.recipes.vectors.scalar:scalar", "vectors"),
    "saq": Recipe("laconic.recipes.vectors.saq:saq", "vectors"),
    "rabitq": Recipe("laconic.recipes.vectors.saq:rabitq", "vectors"),
    "turboquant-prod": Recipe("laconic.recipes.vectors.turboquant:turboquant_prod", "vectors"),
    "ef-topk": Recipe("laconic.recipes.gradients.ef_topk:ef_topk", "gradients"),
    "ef-levels": Recipe("laconic.recipes.gradients.ef_levels:ef_levels", "gradients"),
    "ef-factors": Recipe("laconic.recipes.gradients.ef_factors:ef_factors", "gradients"),
    "econtrol": Recipe("laconic.recipes.gradients.econtrol:econtrol", "gradients"),
    "ef21": Recipe("laconic.recipes.gradients.econtrol:ef21", "gradients"),
    "l-greco": Recipe("laconic.recipes.gradients.l_greco:l_greco", "gradients"),
    "onebit-adam": Recipe("laconic.recipes.gradients.onebit_adam:onebit_adam", "gradients"),
    "bytes-mix": Recipe("laconic.recipes.lossless.bytes_mix:bytes_mix", "lossless"),
    "bytes-wide": Recipe("laconic.recipes.lossless.bytes_wide:bytes_wide", "lossless"),
    "midicoth": Recipe("laconic.recipes.lossless.midicoth:midicoth", "lossless"),
    "planes": Recipe("laconic.recipes.lossless.planes:planes", "lossless"),
    "tensors": Recipe("laconic.recipes.lossless.tensors:tensors", "lossless"),
    "tensors-delta": Recipe("laconic.recipes.lossless.tensors:tensors_delta", "lossless"),
    "probabilistic-circuits": Recipe(
        "laconic.recipes.lossless.probabilistic_circuits:probabilistic_circuits", "lossless"
    ),
    "dct-rdo": Recipe("laconic.recipes.images.dct_rdo:dct_rdo", "images"),
    "gptq-nvfp4": Recipe("laconic.recipes.weights.gptq_nvfp4:gptq_nvfp4", "weights"),
    "gptq": Recipe("laconic.recipes.weights.gptq:gptq", "weights"),
    "k-quants-study": Recipe("laconic.recipes.weights.k_quants_study:k_quants_study", "weights"),
    "arcquant": Recipe("laconic.recipes.weights.arcquant:arcquant", "weights"),
    "mixllm": Recipe("laconic.recipes.weights.mixllm:mixllm", "weights"),
    "d2quant": Recipe("laconic.recipes.weights.d2quant:d2quant", "weights"),
    "decoupleq": Recipe("laconic.recipes.weights.decoupleq:decoupleq", "weights"),
    "baq": Recipe("laconic.recipes.weights.baq:baq", "weights"),
    "mr-gptq": Recipe("laconic.recipes.weights.mr_gptq:mr_gptq", "weights"),
    "rsq": Recipe("laconic.recipes.weights.rsq:rsq", "weights"),
    "k-quant": Recipe("laconic.recipes.weights.k_quant:k_quant", "weights"),
    "spqr": Recipe("laconic.recipes.weights.spqr:spqr", "weights"),
    "bitstack": Recipe("laconic.recipes.weights.bitstack:bitstack", "weights"),
    "lord": Recipe("laconic.recipes.weights.lord:lord", "weights"),
    "pvq-llm": Recipe("laconic.recipes.weights.pvq_llm:pvq_llm", "weights"),
    "saes-svd": Recipe("laconic.recipes.weights.saes_svd:saes_svd", "weights"),
    "vptq": Recipe("laconic.recipes.weights.vptq:vptq", "weights"),
    "evopress": Recipe("laconic.recipes.weights.evopress:evopress", "weights"),
    "adaquant-ip": Recipe("laconic.recipes.weights.adaquant_ip:adaquant_ip", "weights"),
    "discquant": Recipe("laconic.recipes.weights.discquant:discquant", "weights"),
    "pv-tuning": Recipe("laconic.recipes.weights.pv_tuning:pv_tuning", "weights"),
    "hawq": Recipe("laconic.recipes.weights.hawq:hawq", "weights"),
    "layerwise-quant": Recipe("laconic.recipes.weights.layerwise_quant:layerwise_quant", "weights"),
    "auto-cache": Recipe("laconic.recipes.kv.auto_cache:auto_cache", "kv"),
    "turboquant-cache": Recipe("laconic.recipes.kv.turboquant_cache:turboquant_cache", "kv"),
    "cskv": Recipe("laconic.recipes.kv.cskv:cskv", "kv"),
    "xquant": Recipe("laconic.recipes.kv.xquant:xquant", "kv"),
    "xquant-cl": Recipe("laconic.recipes.kv.xquant:xquant_cl", "kv"),
    "uncomp": Recipe("laconic.recipes.kv.uncomp:uncomp", "kv"),
    "hack-var": Recipe("laconic.recipes.kv.hack_var:hack_var", "kv"),
    "rekv": Recipe("laconic.recipes.kv.rekv:rekv", "kv"),
    "v-rex": Recipe("laconic.recipes.kv.v_rex:v_rex", "kv"),
    "sequential-kv-tries": Recipe("laconic.recipes.kv.sequential_kv_tries:sequential_kv_tries", "kv"),
    "matryoshka-kv": Recipe("laconic.recipes.kv.matryoshka_kv:matryoshka_kv", "kv"),
    "kvquant": Recipe("laconic.recipes.kv.kvquant:kvquant", "kv"),
    "rotatekv": Recipe("laconic.recipes.kv.rotatekv:rotatekv", "kv"),
    "zipcache": Recipe("laconic.recipes.kv.zipcache:zipcache", "kv"),
    "gear": Recipe("laconic.recipes.kv.gear:gear", "kv"),
    "mustafar": Recipe("laconic.recipes.kv.mustafar:mustafar", "kv"),
    "staircase-kv": Recipe("laconic.recipes.kv.staircase_kv:staircase_kv", "kv"),
    "vidkv": Recipe("laconic.recipes.kv.vidkv:vidkv", "kv"),
    "kv-pair": Recipe("laconic.recipes.kv.kv_pair:kv_pair", "kv"),
}


@cache
def load(target: str) -> Any:
    """Import "module:name"."""
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


@cache
def _names() -> dict[str, str]:
    return {target: name for name, target in PARTS.items()}


def part_name(cls: type[Part]) -> str:
    """The registered name of a class."""
    target = f"{cls.__module__}:{cls.__qualname__}"
    if target not in _names():
        raise BadConfig(f"{target} is not in the registry; add a line to PARTS in laconic/core/registry.py")
    return _names()[target]


def config(part: Part) -> dict[str, Any]:
    """Nested JSON-able configuration of a part: its name, its version where not 1, and its fields."""
    out: dict[str, Any] = {"part": part_name(type(part))}
    if part.version != 1:
        out["version"] = part.version
    for name in part.config_fields():
        out[name] = _plain(getattr(part, name), f"{type(part).__name__}.{name}")
    return out


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, Part):
        return config(value)
    if isinstance(value, tuple):
        return [_plain(v, where) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise BadConfig(f"{where} is a {type(value).__name__}; configuration is numbers, strings, parts and tuples of them")


def build(data: Any, depth: int = 0) -> Part:
    """The part that a configuration describes. Raises BadConfig for anything `config` cannot have made."""
    if not isinstance(data, dict) or not isinstance(data.get("part"), str):
        raise BadConfig(f"a part's configuration is an object with a name under 'part'; got {str(data)[:80]}")
    if depth > 16:
        raise BadConfig("parts nested more than 16 deep")
    name = data["part"]
    if name not in PARTS:
        raise unknown("part", name, list(PARTS))
    cls = load(PARTS[name])
    version = data.get("version", 1)
    if version != cls.version:
        raise BadConfig(f"part {name!r} has version {version}; this laconic reads version {cls.version}")
    hints = _hints(cls)
    values = {}
    for key, value in data.items():
        if key in ("part", "version"):
            continue
        if key not in hints:
            raise unknown(f"field of part {name!r}:", key, list(hints))
        values[key] = _typed(value, hints[key], f"{name}.{key}", depth)
    if missing := set(hints) - set(values):
        raise BadConfig(f"part {name!r} lacks {', '.join(sorted(missing))}")
    part = cls(**values)
    assert isinstance(part, Part)
    return part


@cache
def _hints(cls: type[Part]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, localns={"Tensor": Any})
    return {name: hints[name] for name in cls.config_fields()}


def _typed(value: Any, hint: Any, where: str, depth: int) -> Any:
    """`value` checked against a field's annotation: numbers, strings, None, unions, tuples, parts."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for option in args:
            if _matches(value, option):
                return _typed(value, option, where, depth)
    elif _matches(value, hint):
        if origin is tuple:
            return tuple(_typed(v, args[0], where, depth) for v in value)
        if isinstance(hint, type) and issubclass(hint, Part):
            part = build(value, depth + 1)
            if not isinstance(part, hint):
                raise BadConfig(f"{where} is a {type(part).__name__}; a {hint.__name__} is wanted")
            return part
        if hint is float and not abs(value) < 3e38:
            raise BadConfig(f"{where} is {value}; a finite number is wanted")
        return float(value) if hint is float else value
    raise BadConfig(f"{where} is {str(value)[:60]!r}; {hint} is wanted")


def _matches(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is tuple:
        return isinstance(value, list)
    if isinstance(hint, type) and issubclass(hint, Part):
        return isinstance(value, dict)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63
    return isinstance(value, hint) if isinstance(hint, type) else False


def recipe(name: str) -> Recipe:
    """The table's line for a recipe id."""
    if name not in RECIPES:
        raise unknown("recipe", name, list(RECIPES))
    return RECIPES[name]


def recipes(domain: str | None = None) -> list[str]:
    """Ids of all recipes, or of those for one domain."""
    domains = sorted({r.domain for r in RECIPES.values()})
    if domain is not None and domain not in domains:
        raise unknown("domain", domain, domains)
    return [name for name, r in RECIPES.items() if domain in (None, r.domain)]
