"""`laconic compress` on the folder of a model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import BadConfig
from .tables import Table, print_table

if TYPE_CHECKING:
    from ..sources.weights.compress import Report
    from ..sources.weights.forecast import Forecast


def is_model(source: str, output: str | None, recipe: str | None) -> bool:
    """Whether a source is a Hugging Face folder to be compressed into a folder: config.json beside safetensors, and neither
    a `.lac` asked for nor a recipe that is not for weights."""
    from ..core.registry import RECIPES

    folder = Path(source)
    if source == "-" or not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        return False
    if output is not None and output.endswith(".lac"):
        return False
    return recipe in (None, "auto") or (recipe in RECIPES and RECIPES[recipe].domain == "weights")


def compress_model(
    source: str, output: str | None, recipe: str | None, bits: float | None, calibrate: list[str], keep: list[str],
    resume: bool, dry_run: bool, force: bool, quiet: bool, json_: Path | None,
    progress: Callable[[int, int, str], None] | None,
) -> None:  # fmt: skip
    """Run it, and say what became of every matrix."""
    from ..sources.weights.compress import compress, prepare

    if output is None:
        raise BadConfig("name the folder for the compressed model (-o OUT), or a file that ends in .lac")
    name = recipe or "auto"
    texts: Any = [Path(c) for c in calibrate] or None
    if dry_run:
        _show_forecast(prepare(source, out=output, bits=bits, recipe=name, calibration=texts, keep=keep))
        return
    report = compress(
        source, out=output, bits=bits, recipe=name, calibration=texts, keep=keep, resume=resume, force=force,
        progress=progress,
    )  # fmt: skip
    if report is None:  # a process of torchrun that is not the first
        return
    if not quiet:
        _show(report)
        if texts is None:
            print("coded without calibration text; --calibrate FILE gives a closer model", file=sys.stderr)
    if json_ is not None:
        rows = [{"name": r.name, "shape": r.shape, "rate": r.rate, "bits": r.bits, "error": r.error, "note": r.note}
                for r in report.rows]  # fmt: skip
        said = {"out": report.out, "recipe": report.recipe, "bits": report.bits, "parameters": report.n_parameters,
                "weight_bytes": report.weight_bytes, "original_bytes": report.original_bytes, "seconds": report.seconds,
                "matrices": rows}  # fmt: skip
        json_.write_text(json.dumps(said, indent=1))


def _show(report: Report) -> None:
    rows = [(r.name, "×".join(map(str, r.shape)), f"{r.bits:.3f}", f"{r.error:.2e}") for r in report.rows]
    print_table(Table("", ("matrix", ">shape", ">bits a weight", ">relative error"), rows), sys.stderr)
    for note in report.notes:
        print(note, file=sys.stderr)
    print(
        f"{report.out}: {report.weight_bytes:,} bytes, was {report.original_bytes:,}; {report.bits:.3f} bits a parameter "
        f"with everything counted ({report.recipe}, {report.seconds:.0f} s)",
        file=sys.stderr,
    )


def _show_forecast(f: Forecast) -> None:
    def size(n: int) -> str:
        return f"{n / (1 << 30):.2f} GiB" if n >= 1 << 30 else f"{n / (1 << 20):.0f} MiB"

    minutes = f"{f.seconds / 60:.0f} minutes" if f.seconds > 90 else f"{f.seconds:.0f} seconds"
    held = f"{f.blocks} blocks, one in memory at a time" if f.blocks else "no chain of blocks: held whole"
    rows = [
        ("model", held),
        ("to be coded", f"{f.matrices} matrices, {f.parameters:,} parameters ({f.kept:,} more are kept)"),
        ("calibration", f"{f.tokens:,} tokens" if f.tokens else "none; --calibrate FILE gives a closer model"),
        ("peak memory, about", size(f.peak_bytes)),
        ("disk while it runs, about", size(f.disk_bytes)),
        ("output, about", size(f.out_bytes)),
        ("time, about", minutes),
    ]
    print_table(Table("", ("what", "will be needed"), rows))


def info_model(folder: Path, as_json: bool) -> None:
    """What a compressed folder holds: every matrix, and the ledger of all bytes of its packets."""
    from ..core.packet import info
    from ..sources.weights.store import ORDER, Packed

    packed = Packed(folder)
    rows, by_role = [], {}
    for name in packed:
        said = info(packed[name], codecs=packed.codecs)
        rows.append({"name": name, "recipe": said.recipe, "shape": list(said.shape), "bytes": said.packet_bytes})
        for role, n in said.ledger.by_role().items():
            by_role[role] = by_role.get(role, 0) + n
    if ORDER in packed.source:
        by_role["indices"] = by_role.get("indices", 0) + packed.source[ORDER].nbytes
    by_role["kept tensors"] = sum(packed.source[k].nbytes for k in packed.kept)
    if as_json:
        print(json.dumps({"path": str(folder), "recipe": packed.said["recipe"], "ledger": by_role, "matrices": rows}))
        return
    lines = [(r["name"], r["recipe"], "×".join(map(str, r["shape"])), f"{r['bytes']:,}",
              f"{8 * r['bytes'] / (r['shape'][0] * r['shape'][1]):.3f}") for r in rows]  # fmt: skip
    print_table(Table("", ("matrix", "recipe", ">shape", ">bytes", ">bits a weight"), lines))
    print_table(Table("", ("where the bytes are", ">bytes"), [(k, f"{v:,}") for k, v in by_role.items() if v]))


def verify_model(folder: Path) -> int:
    """Decode every packet of a compressed folder; returns their number."""
    from ..sources.weights.store import Packed

    packed = Packed(folder)
    for name in packed:
        packed.decode(name)
    return len(packed)
