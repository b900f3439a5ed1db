"""An encoder as a folder that Hugging Face's transformers reads: config.json, tokenizer and weights.

    python -m sweeps.store export "mlm wsd B=1000 s0" own-1000
    python -m trainables.common.models.encoder_folder own-1000 own-0

The first writes an encoder that `masked_lm` trained, the second what it was before its first step.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from trainables.common.data.wordpiece import Masking, tokenizer_files
from trainables.common.models.encoder import Encoder, EncoderShape

SEED = "initial_weights_seed"  # what config.json holds beside BertConfig's fields


def folder_files(shape: EncoderShape, masking: Masking, seed: int) -> dict[str, bytes]:
    """All of the folder but the weights, by file name; `seed` is what they were first drawn with."""
    config = {**shape.for_transformers(), "pad_token_id": masking.pad, SEED: seed}
    return {"config.json": json.dumps(config, indent=1).encode(), **tokenizer_files(masking, shape.context)}


def write_initial(folder: Path, out: Path, seed: int | None = None) -> None:
    """The encoder of an exported folder before its first step: its sizes and encoding, weights drawn by `seed`.

    By default by the seed it was trained with, which gives the very weights that its training started from. Raises
    ValueError when `folder` was not exported by `masked_lm`, or `out` holds files.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        shape, own_seed = EncoderShape.from_transformers(config), int(config[SEED])
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{folder} must be an encoder that masked_lm trained; write one: python -m sweeps.store export TRIAL FOLDER"
        ) from None
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; name a new folder")
    out.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.json"):
        shutil.copy(file, out / file.name)
    seed = own_seed if seed is None else seed
    (out / "config.json").write_text(json.dumps({**config, SEED: seed}, indent=1))
    model = Encoder(shape, torch.Generator().manual_seed(seed))
    weights = {name: value.detach() for name, value in model.named_parameters()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt", "study": "masked_lm", "step": "0"})


def main(arguments: Sequence[str] | None = None) -> int:
    about = "write the encoder that an exported one was before its first step"
    parser = argparse.ArgumentParser(prog="python -m trainables.common.models.encoder_folder", description=about)
    parser.add_argument("folder", type=Path, help="what python -m sweeps.store export wrote")
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--seed", type=int, help="of the weights; by default the one it was trained with")
    given = parser.parse_args(arguments)
    try:
        write_initial(given.folder, given.out, given.seed)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"written: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
