"""A .gguf file as a model folder: its weights turned into float32, once, beside what was fetched from the hub."""

import os
import shutil
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from w2s.files import digest
from w2s.params import ParameterError

GGUF = ".gguf"


def find(path: Path) -> Path | None:
    """The .gguf file that a path names, or the only one in the folder that it names."""
    if path.suffix == GGUF and path.is_file():
        return path
    files = sorted(path.glob(f"*{GGUF}"))
    if len(files) > 1:
        raise ParameterError(f"model {str(path)!r}: this folder holds {len(files)} {GGUF} files; name one of them")
    return files[0] if files else None


@lru_cache
def as_folder(file: Path, parent: Path) -> Path:
    """The model folder of a .gguf file under `parent`, named by the file's hash; made when it is first asked for.

    ParameterError: the package gguf is missing, or the file cannot be read.
    """
    folder = parent / digest(file)[:16]
    if (folder / "config.json").is_file():
        return folder
    if not find_spec("gguf"):
        raise ParameterError(f"model {str(file)!r}: reading {GGUF} needs a package: pip install gguf")
    parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock", mode=0o666):  # for every user of a shared folder
        if not folder.exists():
            print(f"{file.name}: its {GGUF} weights are turned into float32, once, under {folder}", flush=True)
            part = parent / f"{folder.name}.part"
            try:
                _convert(file, part)
                os.replace(part, folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return folder


def _convert(file: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        read = AutoModelForCausalLM.from_pretrained(**where, dtype="float32")
    except Exception as error:  # the packages behind it have no common one
        what = " ".join(str(error).split())[:160]
        raise ParameterError(f"model {str(file)!r}: cannot be read as {GGUF} ({what}); get it again") from error
    read.config.__dict__.pop("quantization_config", None)
    plain = AutoModelForCausalLM.from_config(read.config)  # the other is marked as quantized, and is not saved
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():  # safetensors' are their writer's alone
        path.chmod(0o644)
