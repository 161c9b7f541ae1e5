"""Models and datasets by name: where their files are, and loading them without running what they bring."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import errors, try_to_load_from_cache
from safetensors import SafetensorError

from w2s.params import PACKAGE, ParameterError, StudyParams, located, nearest

LADDER, INDEX = PACKAGE / "ladder", "fetched.json"

EXPECTED = {
    "harmless": "gt.*, w2s.*, test.*, helpful*.* and perhaps validation.*, or harmless.* / train.* to draw them from",
    "helpful": "helpful*.* to draw gt, w2s, validation and test from, and harmless files (gt.*, harmless.*, train.* "
    "and so on) for the conflict",
}
GET = "w2s fetch PARAMS.yaml gets it where there is a network"
NO_NETWORK = f"no network, or HF_HUB_OFFLINE is set; {GET}"
DAMAGED = "a file of its weights is damaged; get it again"
UNSAFE = "its pickle holds more than weights, or is damaged, and w2s executes none; choose a model with safetensors"
NO_WEIGHTS = "it has no weights: neither model.safetensors nor pytorch_model.bin; name another model"
NO_TOKENIZER = "it has no tokenizer that can be used; choose a model that has a tokenizer.json"
# The first kind of error that occurs in a failure explains it, else the first words.
CAUSES = {
    errors.GatedRepoError: "it is gated; accept its licence on its page and set HF_TOKEN",
    errors.RevisionNotFoundError: "the hub has no such revision of it; check what stands behind the @",
    errors.RepositoryNotFoundError: "the hub has none of that name, or a private one; check the name, or set HF_TOKEN",
    errors.HfHubHTTPError: "the hub refuses to give it; check HF_TOKEN, or try again later",
    errors.LocalEntryNotFoundError: NO_NETWORK,
    errors.OfflineModeIsEnabled: NO_NETWORK,
    errors.HTTPError: NO_NETWORK,
    pickle.UnpicklingError: UNSAFE,
    SafetensorError: DAMAGED,
    EOFError: DAMAGED,
}
WORDS = {
    "trust_remote_code": "it wants trust_remote_code, which w2s never grants; choose a model that transformers knows",
    "no file named model.safetensors": NO_WEIGHTS,
    "a file named pytorch_model.bin": NO_WEIGHTS,
    "backend tokenizer": NO_TOKENIZER,
    "ignore_mismatched_sizes": "its weights do not have the shapes that its config.json says; get it again",
}


class Wanted(NamedTuple):
    """A model or a dataset that a study needs from the hub; of a dataset, one folder or all of it."""

    kind: str
    name: str
    repo: str
    revision: str | None = None
    subset: str | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}"


HH, CAI = "Anthropic/hh-rlhf", "HuggingFaceH4/cai-conversation-harmless"
HELPFUL = Wanted("dataset", f"{HH}/helpful-base", HH, subset="helpful-base")
# What `data` names on the hub, beside the helpful pairs of HH.
HARMLESS = {
    "hh": HELPFUL._replace(name=f"{HH}/harmless-base", subset="harmless-base"),
    "cai": Wanted("dataset", CAI, CAI),
}


def split(name: str) -> tuple[str, str | None]:
    """The repository and the revision of `org/model@revision`; None where the name is not pinned."""
    repo, at, revision = name.partition("@")
    if at and (not repo or not revision or "/" in revision):
        raise ParameterError(f"model {name!r}: write org/model@revision, a branch, a tag or a commit without /")
    return repo, revision or None


def resolve(name: str) -> str:
    """Where a model's files are: the pocket ladder, a local folder, a fetched one, else its name on the hub."""
    return _on_disk(name) or str(fetched("model", name) or name)


def _on_disk(name: str) -> str | None:
    """The folder of a model on this machine that was not fetched, None where there is none."""
    path = LADDER / name if name.startswith("pocket-") else located(name)
    if name.startswith("pocket-") and not (path / "config.json").is_file():
        sizes = sorted(p.parent.name for p in LADDER.glob("*/config.json"))
        raise ParameterError(f"model {name!r}: not a size of the pocket ladder; {nearest(name, sizes)}")
    if (path / "config.json").is_file():
        return str(path)
    if path.exists() or name.startswith((".", "/", "~")):
        raise ParameterError(f"model {name!r}: this folder holds no config.json; name a Hugging Face model folder")
    return None


def hub_folder() -> Path:
    """Where fetched files are: W2S_HUB, else outputs/hub."""
    return located(os.environ.get("W2S_HUB") or "outputs/hub")


def index() -> dict[str, dict[str, dict]]:
    """Kind -> name -> repo, commit, folder, and sha256 of each file, of everything that is fetched."""
    path = hub_folder() / INDEX
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"model": {}, "dataset": {}}
    except ValueError:
        raise ParameterError(f"{path}: not readable as JSON; delete it and run w2s fetch again") from None


def fetched(kind: str, name: str) -> Path | None:
    """The folder of a fetched model or dataset with all of its files, None when it has not been fetched."""
    entry = index()[kind].get(name)
    folder = hub_folder() / entry["folder"] if entry else None
    for file in entry["files"] if entry else []:
        if not (folder / file).is_file():
            raise ParameterError(f"{kind} {name!r}: {folder / file} was fetched and is gone; {GET}")
    return folder


def check_offline(params: StudyParams) -> None:
    """Raise a ParameterError when `offline` is set and a study needs something that has not been fetched."""
    for item in wanted(params) if params.offline else []:
        if fetched(item.kind, item.name) is None:
            raise ParameterError(f"{item}: not fetched, and offline = True; {GET}")


def wanted(params: StudyParams) -> list[Wanted]:
    """What a study needs from the hub, fetched or not."""
    names = []
    for name in (*params.weak_models, *params.strong_models, *params.intermediate_models):
        adapter = Path(_on_disk(name) or "") / "adapter_config.json"  # of a folder of adapters, their base is needed
        names.append(json.loads(adapter.read_text())["base_model_name_or_path"] if adapter.is_file() else name)
    models = [Wanted("model", name, *split(name)) for name in dict.fromkeys(names) if not _on_disk(name)]
    return models + list(hub_parts(params).values())


def hub_parts(params: StudyParams) -> dict[str, Wanted]:
    """Role -> dataset of the hub; nothing when the pairs are on this machine."""
    if params.data not in HARMLESS or pairs_folder(params):
        return {}
    parts = {"harmless": HARMLESS[params.data], "helpful": HELPFUL}
    roles = {"pool": parts[params.target], "helpful": parts[params.conflicting]}
    return roles if params.n_helpful else {"pool": roles["pool"]}


def pairs_folder(params: StudyParams) -> Path | None:
    """The local folder of pairs that `params` names, None for the hub."""
    if params.data in HARMLESS:
        key, value = ("data_dir", params.data_dir) if params.data_dir else ("W2S_DATA_DIR", os.getenv("W2S_DATA_DIR"))
        remedy = f"give the folder that holds {EXPECTED[params.target]}"
    elif params.data_dir:
        raise ParameterError(f"data_dir = {params.data_dir!r}: data already names a folder; leave data_dir out")
    else:
        key, value = "data", params.data
        remedy = nearest(value, ["pocket", "hh", "cai", "the path of a folder of pairs"])
    if value and not located(value).is_dir():
        raise ParameterError(f"{key} = {value!r}: no such folder; {remedy}")
    return located(value) if value else None


def from_pretrained(loader, name: str, **options):
    """Call a transformers loader on a model by its name, as `load` does; a failure names model, cause and remedy."""
    from transformers.utils import logging  # here, as in `load`: reading pairs does without transformers

    logging.disable_progress_bar()  # a bar for each of many small loads hides the study's own progress
    # Else transformers asks a web service to convert a model of pickles, and hands it the user's token.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    where, revision = resolve(name), None
    if not Path(where).is_absolute():
        where, revision = split(name)
    with explained(f"model {name!r}", "loaded", "check the name, or give a local folder or a pocket size"):
        return load(loader, name, where, options | ({"revision": revision} if revision else {}))


def load(loader, name: str, where: str, options: dict):
    """Load from `where`, running no foreign and no pickled code, and leaving no weight to chance."""
    from transformers import AutoConfig, AutoTokenizer

    options = {**options, "trust_remote_code": False}
    if loader in (AutoConfig, AutoTokenizer):
        loaded = loader.from_pretrained(where, **options)
        if loader is AutoTokenizer and not n_plain(loaded):  # transformers makes an empty one where its files lack
            raise ParameterError(f"model {name!r}: {NO_TOKENIZER}")
        return loaded
    model, info = loader.from_pretrained(where, weights_only=True, output_loading_info=True, **options)
    if info["missing_keys"]:  # transformers draws them at random
        few = ", ".join(sorted(info["missing_keys"])[:2])
        raise ParameterError(f"model {name!r}: its files lack weights ({few}, …); name a model that is whole")
    _announce_pickle(name, where, options.get("revision"))
    return model


@cache
def _announce_pickle(name: str, where: str, revision: str | None) -> None:
    """Say, once in a process, that the weights in a folder, or in transformers' own cache, are pickles only."""

    def there(file: str) -> bool:
        if Path(where).is_dir():
            return (Path(where) / file).is_file()
        return isinstance(try_to_load_from_cache(where, file, revision=revision), str)

    safe, pickled = (there(f) or there(f"{f}.index.json") for f in ("model.safetensors", "pytorch_model.bin"))
    if pickled and not safe:
        print(f"model {name!r}: read from pickle, with weights_only=True", flush=True)


def check_vocabulary(name: str, tokenizer, config) -> None:
    """Raise a ParameterError unless a model has an embedding for each token that ordinary text turns into."""
    n_tokens, n_embeddings = n_plain(tokenizer), config.get_text_config().vocab_size
    if n_tokens > n_embeddings:
        sizes = f"{n_tokens} tokens, its model only {n_embeddings}"
        raise ParameterError(f"tokenizer of {name!r} has {sizes}; they do not belong together")


def n_plain(tokenizer) -> int:
    """The highest token id that is not special, plus one, else 0; there may be more special ones than embeddings."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return max(set(tokenizer.get_vocab().values()) - special, default=-1) + 1


@contextmanager
def explained(what: str, done: str, remedy: str) -> Iterator[None]:
    """Turn a failure of hub, transformers or a file into one line; `remedy` ends it where no cause is known."""
    try:
        yield
    except ParameterError:
        raise
    except (*CAUSES, OSError, ValueError, RuntimeError, ImportError) as error:
        text, chain = " ".join(str(error).split()), [error]
        while chain[-1].__cause__:
            chain.append(chain[-1].__cause__)
        kinds = (cause for kind, cause in CAUSES.items() if any(isinstance(link, kind) for link in chain))
        words = (cause for part, cause in WORDS.items() if part in str(error))
        reason = next(kinds, None) or next(words, f"{text[:160].rstrip('.')}; {remedy}")
        raise ParameterError(f"{what} cannot be {done}: {reason}") from error
