"""Download the models and datasets of a study once, whole, and no more than it needs."""

import shutil
from fnmatch import fnmatchcase

from filelock import FileLock
from huggingface_hub import HfApi, hf_hub_download
from transformers import AutoConfig, AutoTokenizer

from w2s.files import digest, write_json
from w2s.params import ParameterError, StudyParams
from w2s.sources import TABLES, hub
from w2s.sources.audit import SUFFIXES


def fetch(params: StudyParams) -> None:
    """Get from the hub what a study needs and is not here whole; the index names it once it is.

    A name stays at the commit of its first fetch. What cannot be had, or w2s could not use, is a ParameterError.
    """
    items = hub.wanted(params)
    for item in items:
        entry = hub.index()[item.kind].get(item.name, {"commit": item.revision, "folder": "", "files": {}})
        folder, files = hub.hub_folder() / entry["folder"], entry["files"]
        damaged = [name for name, sha in files.items() if not (folder / name).is_file() or digest(folder / name) != sha]
        for name in damaged:
            print(f"{item}: {name} is damaged or gone, and is fetched again", flush=True)
            (folder / name).unlink(missing_ok=True)
        if files and not damaged:
            print(f"{item}: here and whole, commit {entry['commit'][:12]}, {len(files)} files", flush=True)
            continue
        with hub.explained(str(item), "fetched", "the same command goes on from there"):
            _download(item, entry["commit"])
    print(f"{len(items)} of {len(items)} are in {hub.hub_folder()}" if items else "nothing to fetch: all is local")


def _download(item: hub.Wanted, revision: str | None) -> None:
    """Fetch the files of one commit and record them; a model that w2s could not use is refused before its weights."""
    info = HfApi().repo_info(item.repo, repo_type=item.kind, revision=revision, files_metadata=True)
    parts = {part.rfilename: part for part in info.siblings}
    small, large = _files(item, list(parts))
    files = small + large
    place = f"{item.kind}s/{item.repo.replace('/', '--')}@{info.sha[:12]}"
    folder = hub.hub_folder() / place
    folder.mkdir(parents=True, exist_ok=True)
    size, free = sum(parts[file].size for file in files), shutil.disk_usage(folder).free
    print(f"{item}: commit {info.sha[:12]}, {len(files)} files, {size / 1e6:,.1f} MB", flush=True)
    needed = sum(parts[file].size for file in files if not (folder / file).is_file())
    if needed > free:
        room = f"{needed / 1e6:,.0f} MB, and {hub.hub_folder()} has {free / 1e6:,.0f} MB free"
        raise ParameterError(f"{item}: needs {room}; set W2S_HUB to a folder on a larger disk")
    for file in files:  # one by one: snapshot_download, interrupted, first waits for all that are under way
        if item.kind == "model" and file == large[0]:
            config, tokenizer = (hub.load(auto, item.name, str(folder)) for auto in (AutoConfig, AutoTokenizer))
            hub.check_vocabulary(item.name, tokenizer, config)
        hf_hub_download(item.repo, file, repo_type=item.kind, revision=info.sha, local_dir=folder)
    digests = {file: digest(folder / file) for file in files}
    for file, sha256 in digests.items():
        expected = parts[file].lfs.sha256 if parts[file].lfs else sha256
        if sha256 != expected or (folder / file).stat().st_size != parts[file].size:
            (folder / file).unlink()
            raise ParameterError(f"{item}: {file} arrived damaged; run w2s fetch again")
    with FileLock(hub.hub_folder() / f".{hub.INDEX}.lock"):
        index = hub.index()
        index[item.kind][item.name] = {"repo": item.repo, "commit": info.sha, "folder": place, "files": digests}
        write_json(hub.hub_folder() / hub.INDEX, index)


def _files(item: hub.Wanted, names: list[str]) -> tuple[list[str], list[str]]:
    """Of a model its settings, and its weights as safetensors, else pickles; of a dataset its card and its tables."""
    if item.kind == "dataset":
        folder = f"{item.subset}/" if item.subset else ""
        tables = [name for name in names if name.startswith(folder) and name.endswith(SUFFIXES)]
        if not tables:
            raise ParameterError(f"{item} cannot be fetched: its repository holds no {' or '.join(SUFFIXES)}")
        return [name for name in names if name == "README.md"], tables
    own = [name for name in names if "/" not in name]
    kinds = (TABLES[kind] for kind in ("settings", "safetensors", "pickles"))
    settings, safe, pickles = ([n for n in own if any(fnmatchcase(n, p) for p in kind)] for kind in kinds)
    if not safe + pickles:
        raise ParameterError(f"{item} cannot be fetched: {hub.NO_WEIGHTS}")
    if not safe:
        print(f"{item}: has its weights as pickle files only; they are read with weights_only=True", flush=True)
    return settings, safe or pickles
