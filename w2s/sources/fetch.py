"""Download the models and datasets of a study once, whole, and no more than it needs."""

from __future__ import annotations

import hashlib
import json
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

from filelock import FileLock
from huggingface_hub import HfApi, hf_hub_download
from transformers import AutoConfig, AutoTokenizer

from w2s.files import write_atomic
from w2s.params import ParameterError, StudyParams
from w2s.sources import hub
from w2s.sources.audit import SUFFIXES
from w2s.sources.hub import Wanted

# Patterns of a repository's own folder only: nothing of original/, onnx/ and the like.
SETTINGS = ("config.json", "generation_config.json", "reward_unit.safetensors", "chat_template.*")
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model", "*.tiktoken", "tekken.json"),
)
SAFETENSORS = ("model*.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")


def fetch(params: StudyParams) -> None:
    """Get from the hub what a study needs and is not here whole; the index names it once it is.

    A name stays at the commit of its first fetch.

    Raises:
        ParameterError: something that cannot be had, or that w2s could not use.
    """
    items = hub.wanted(params)
    for item in items:
        entry = hub.index()[item.kind].get(item.name)
        damaged = _damaged(entry) if entry else []
        for file in damaged:
            print(f"{item}: {file} is damaged or gone, and is fetched again", flush=True)
            (hub.hub_folder() / entry["folder"] / file).unlink(missing_ok=True)
        if entry and not damaged:
            print(f"{item}: here and whole, commit {entry['commit'][:12]}, {len(entry['files'])} files", flush=True)
        else:
            with hub.explained(str(item), "fetched", "the same command goes on from there"):
                _download(item, entry["commit"] if entry else item.revision)
    print(f"{len(items)} of {len(items)} are in {hub.hub_folder()}" if items else "nothing to fetch: all is local")


def _damaged(entry: dict) -> list[str]:
    return [file for file, digest in entry["files"].items() if _sha256(entry, file) != digest]


def _sha256(entry: dict, file: str) -> str | None:
    path = hub.hub_folder() / entry["folder"] / file
    if not path.is_file():
        return None
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _download(item: Wanted, revision: str | None) -> None:
    """Fetch the files of one commit and record them; a model that w2s could not use is refused before its weights."""
    info = HfApi().repo_info(item.repo, repo_type=item.kind, revision=revision, files_metadata=True)
    parts = {part.rfilename: part for part in info.siblings}
    first, rest = _model_files(item, [*parts]) if item.kind == "model" else _dataset_files(item, [*parts])
    entry = {"repo": item.repo, "commit": info.sha, "folder": _place(item, info.sha)}
    folder = hub.hub_folder() / entry["folder"]
    folder.mkdir(parents=True, exist_ok=True)
    size = sum(parts[file].size for file in first + rest)
    print(f"{item}: commit {info.sha[:12]}, {len(first + rest)} files, {size / 1e6:,.1f} MB", flush=True)
    _check_room(item, sum(parts[file].size for file in first + rest if not (folder / file).is_file()))
    _get(item, info.sha, folder, first)
    if item.kind == "model":
        _check_settings(item.name, folder)
    _get(item, info.sha, folder, rest)
    entry["files"] = {file: _sha256(entry, file) for file in first + rest}
    for file, digest in entry["files"].items():
        expected = parts[file].lfs.sha256 if parts[file].lfs else digest
        if digest != expected or (folder / file).stat().st_size != parts[file].size:
            (folder / file).unlink()
            raise ParameterError(f"{item}: {file} arrived damaged; run w2s fetch again")
    _record(item, entry)


def _place(item: Wanted, commit: str) -> str:
    return f"{item.kind}s/{item.repo.replace('/', '--')}@{commit[:12]}"


def _model_files(item: Wanted, names: list[str]) -> tuple[list[str], list[str]]:
    """Settings and tokenizer, and weights: safetensors, or pickles where a repository has none."""
    safe, pickles = _matching(names, SAFETENSORS), _matching(names, PICKLES)
    if not safe + pickles:
        raise ParameterError(f"{item} cannot be fetched: {hub.NO_WEIGHTS}")
    if not safe:
        print(f"{item}: has its weights as pickle files only; they are read with weights_only=True", flush=True)
    return _matching(names, SETTINGS + TOKENIZER), safe or pickles


def _matching(names: list[str], patterns: tuple[str, ...]) -> list[str]:
    return [name for name in names if any("/" not in name and fnmatchcase(name, pattern) for pattern in patterns)]


def _dataset_files(item: Wanted, names: list[str]) -> tuple[list[str], list[str]]:
    """The card, which says how the parts are to be read, and the tables of the folder."""
    folder = f"{item.subset}/" if item.subset else ""
    tables = [name for name in names if name.startswith(folder) and name.endswith(SUFFIXES)]
    if not tables:
        raise ParameterError(f"{item} cannot be fetched: its repository holds no {' or '.join(SUFFIXES)}")
    return _matching(names, ("README.md",)), tables


def _check_room(item: Wanted, size: int) -> None:
    free = shutil.disk_usage(hub.hub_folder()).free
    if size > free:
        room = f"{size / 1e6:,.0f} MB, and {hub.hub_folder()} has {free / 1e6:,.0f} MB free"
        raise ParameterError(f"{item}: needs {room}; set W2S_HUB to a folder on a larger disk")


def _check_settings(name: str, folder: Path) -> None:
    config, tokenizer = (hub.load(loader, name, str(folder), {}) for loader in (AutoConfig, AutoTokenizer))
    hub.check_vocabulary(name, tokenizer, config)


def _get(item: Wanted, commit: str, folder: Path, files: list[str]) -> None:
    for file in files:
        hf_hub_download(item.repo, file, repo_type=item.kind, revision=commit, local_dir=folder)


def _record(item: Wanted, entry: dict) -> None:
    with FileLock(hub.hub_folder() / f".{hub.INDEX}.lock"):
        index = hub.index()
        index[item.kind][item.name] = entry
        write_atomic(hub.hub_folder() / hub.INDEX, lambda path: path.write_text(json.dumps(index, indent=1)))
