"""Other people's weight quantizers, each run in its own environment: true bytes, and a folder that our evaluation reads.

`make peers` builds the environments below `.peers/` (or `$LACONIC_PEERS`). The scripts run inside them and
import nothing else of laconic's; all calibrate on the same windows (`scripts.common.calibration_windows`).
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...core.errors import BadConfig, CodecError, unknown
from . import settings
from .scripts import common

SCRIPTS = Path(__file__).parent / "scripts"


@dataclass(frozen=True)
class Peer:
    """A system to compare with.

    script: a module of `scripts`; environment: a folder of `.peers/`; settings: label → what the script is told.
    """

    name: str
    script: str
    environment: str
    settings: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class PeerResult:
    """What a peer made. true_bytes: all stored tensors, codes, scales, zeros and what was left unquantized.

    n_parameters counts a tied embedding once; folder: the dequantized model, float32.
    """

    name: str
    setting: str
    true_bytes: int
    n_parameters: int
    folder: str

    @property
    def bits(self) -> float:
        """True bits per parameter of the whole model."""
        return 8 * self.true_bytes / self.n_parameters


PEERS = {
    p.name: p
    for p in (
        Peer("llama.cpp", "llama_cpp", "llama_cpp", settings.llama_cpp()),
        Peer("llm-compressor", "llmcompressor", "llmcompressor", settings.llm_compressor()),
        Peer("gptqmodel", "gptqmodel", "gptqmodel", settings.gptq_model()),
        Peer("hqq", "hqq", "hqq", settings.half_quadratic()),
    )
}


def environments() -> Path:
    """Where the environments are: `$LACONIC_PEERS`, else `.peers` at the root of a checkout."""
    named = os.environ.get("LACONIC_PEERS")
    return Path(named) if named else Path(__file__).parents[4] / ".peers"


def interpreter(peer: Peer) -> Path:
    """The Python of a peer's environment.

    Raises
    ------
    BadConfig: it has not been built.
    """
    python = environments() / peer.environment / "bin" / "python"
    if not python.exists():
        raise BadConfig(f"{peer.name} needs its own environment, and {python} is not there; `make peers` builds it")
    return python


def run(peer: Peer, setting: str, model_dir: Path, calibration_text_file: Path, out_dir: Path,
        timeout_seconds: float = 3600) -> PeerResult:  # fmt: skip
    """Quantize a Hugging Face folder with a peer, or return what an earlier call with the same inputs left in `out_dir`.

    Raises
    ------
    BadConfig: the peer has no such setting, or its environment has not been built.
    CodecError: its script failed; the message has the end of what it printed.
    """
    if setting not in peer.settings:
        raise unknown(f"setting of {peer.name}", setting, list(peer.settings))
    told = json.dumps(peer.settings[setting], sort_keys=True)
    inputs = _digest(
        [SCRIPTS / f"{peer.script}.py", SCRIPTS / "common.py", calibration_text_file, *_model_files(model_dir)]
    )
    folder = out_dir / f"{peer.environment}-{hashlib.sha256((inputs + told).encode()).hexdigest()[:16]}"
    record = folder / "peer.json"
    if record.exists():
        return PeerResult(**json.loads(record.read_text()))
    python = interpreter(peer)
    work = out_dir / "work" / f"{peer.environment}-{inputs[:16]}"
    work.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [python, "-m", f"scripts.{peer.script}", model_dir.resolve(), calibration_text_file.resolve(), folder.resolve(),
         work.resolve(), told],
        capture_output=True, text=True, errors="replace", timeout=timeout_seconds, cwd=work,
        env={**os.environ, "PYTHONPATH": str(SCRIPTS.parent)},
    )  # fmt: skip
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = " | ".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-3:])
        raise CodecError(f"{peer.name} {setting} ended with {done.returncode}: {said}")
    true_bytes = json.loads(lines[-1])["true_bytes"]
    result = PeerResult(peer.name, setting, true_bytes, _n_parameters(folder), str(folder))
    record.write_text(json.dumps(asdict(result)))
    return result


def _model_files(model_dir: Path) -> list[Path]:
    return sorted(p for p in model_dir.iterdir() if p.suffix in (".safetensors", ".json"))


def _digest(paths: list[Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as f:
            total.update(hashlib.file_digest(f, "sha256").digest())
    return total.hexdigest()


def _n_parameters(folder: Path) -> int:
    return sum(values.size for _, values in common.read_tensors(folder))
