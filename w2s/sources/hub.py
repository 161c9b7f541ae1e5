"""Models and datasets by name: where their files are, and loading them without running what they bring."""

import json
import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import errors, try_to_load_from_cache
from safetensors import SafetensorError

from w2s.params import PACKAGE, ParameterError, StudyParams, located, nearest
from w2s.sources import LFS, TABLES, quantized

LADDER, INDEX, ADAPTERS = PACKAGE / "ladder", "fetched.json", "adapter_config.json"
GET = "w2s fetch PARAMS.yaml gets it where there is a network"
NO_WEIGHTS = TABLES["words"]["no file named model.safetensors"]
FAILURES = (errors.HTTPError, pickle.UnpicklingError, SafetensorError, EOFError)
FAILURES += (OSError, ValueError, RuntimeError, ImportError)


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
HH_HARMLESS, HELPFUL = (Wanted("dataset", f"{HH}/{s}", HH, subset=s) for s in ("harmless-base", "helpful-base"))
# What `data` names on the hub, beside the helpful pairs of HH.
HARMLESS = {"hh": HH_HARMLESS, "cai": Wanted("dataset", CAI, CAI)}


def split(name: str) -> tuple[str, str | None]:
    """The repository and the revision of `org/model@revision`; None where the name is not pinned."""
    repo, at, revision = name.partition("@")
    if at and (not repo or not revision or "/" in revision):
        raise ParameterError(f"model {name!r}: write org/model@revision, a branch, a tag or a commit without /")
    return repo, revision or None


def cut(name: str) -> tuple[str, int | None]:
    """The whole model and the number of its first blocks: gpt2[:6] is cut from gpt2; None: it is not cut."""
    found = re.fullmatch(r"(.+)\[:(\d+)\]", name)
    return (found[1], int(found[2])) if found else (name, None)


def resolve(name: str) -> str:
    """Where a whole model's files are: the pocket ladder, a local one, a fetched one, else its hub name."""
    name, _ = cut(name)
    return str(_on_disk(name) or fetched("model", name) or name)


def _on_disk(name: str) -> Path | None:
    """The folder of a model on this machine that was not fetched; of a .gguf file, the one made of it."""
    name, _ = cut(name)
    path = LADDER / name if name.startswith("pocket-") else located(name)
    if (path / "config.json").is_file():
        return path
    if file := quantized.find(path):
        return quantized.as_folder(file, hub_folder() / "gguf")
    if name.startswith("pocket-"):
        sizes = sorted(p.parent.name for p in LADDER.glob("*/config.json"))
        raise ParameterError(f"model {name!r}: not a size of the pocket ladder; {nearest(name, sizes)}")
    if path.exists() or name.startswith((".", "/", "~")):
        raise ParameterError(f"model {name!r}: this folder holds no config.json; name a Hugging Face model folder")
    return None


def base_of(name: str) -> str:
    """The model that a local folder of adapters was trained on, else the model itself."""
    folder = _on_disk(name)
    if not folder or not (folder / ADAPTERS).is_file():
        return name
    if cut(name)[1]:
        raise ParameterError(f"model {name!r}: adapters are not cut; cut their base, and train adapters on it")
    with suppress(ValueError, KeyError, TypeError):
        base = json.loads((folder / ADAPTERS).read_text(encoding="utf-8"))["base_model_name_or_path"]
        if isinstance(base, str):
            return base
    raise ParameterError(f"model {name!r}: its {ADAPTERS} names no base model; train it again")


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
    entry = index()[kind].get(name, {"folder": "", "files": {}})
    folder = hub_folder() / entry["folder"]
    if gone := [folder / file for file in entry["files"] if not (folder / file).is_file()]:
        raise ParameterError(f"{kind} {name!r}: {gone[0]} was fetched and is gone; {GET}")
    return folder if entry["files"] else None


def wanted(params: StudyParams) -> list[Wanted]:
    """What a study needs from the hub, fetched or not; of adapters in a local folder, their base."""
    every = (*params.weak_models, *params.strong_models, *params.intermediate_models)
    names = dict.fromkeys(cut(base_of(name))[0] for name in every)
    models = [Wanted("model", name, *split(name)) for name in names if not _on_disk(name)]
    return models + list(hub_parts(params).values())


def hub_parts(params: StudyParams) -> dict[str, Wanted]:
    """Role -> dataset of the hub; nothing when the pairs are on this machine."""
    if params.data not in HARMLESS or pairs_folder(params):
        return {}
    parts = {"harmless": HARMLESS[params.data], "helpful": HELPFUL}
    conflict = {"helpful": parts[params.conflicting]} if params.n_helpful else {}
    return {"pool": parts[params.target]} | conflict


def pairs_folder(params: StudyParams) -> Path | None:
    """The local folder of pairs that `params` names, None for the hub."""
    if params.data in HARMLESS:
        key, value = ("data_dir", params.data_dir) if params.data_dir else ("W2S_DATA_DIR", os.getenv("W2S_DATA_DIR"))
        remedy = f"give the folder that holds {TABLES['expected'][params.target]}"
    elif params.data_dir:
        raise ParameterError(f"data_dir = {params.data_dir!r}: data already names a folder; leave data_dir out")
    else:
        key, value = "data", params.data
        remedy = nearest(value, ["pocket", "hh", "cai", "the path of a folder of pairs"])
    if value and not located(value).is_dir():
        raise ParameterError(f"{key} = {value!r}: no such folder as {located(value)}; {remedy}")
    return located(value) if value else None


def from_pretrained(loader, name: str, **options):
    """Call a transformers loader on a model by its name, as `load` does; a failure names model, cause and remedy."""
    from transformers.utils import logging  # here, as in `load`: reading pairs does without transformers

    logging.disable_progress_bar()  # a bar for each of many small loads hides the study's own progress
    # Else transformers asks a web service to convert a model of pickles, and hands it the user's token.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    where = resolve(name)
    if not Path(where).is_absolute():
        where, revision = split(where)
        options |= {"revision": revision} if revision else {}
    before = logging.get_verbosity()
    if cut(name)[1]:
        logging.set_verbosity_error()  # else it lists the weights of the blocks that are left out
    try:
        with explained(f"model {name!r}", "loaded", "check the name, or give a local folder or a pocket size"):
            return load(loader, name, where, **options)
    finally:
        logging.set_verbosity(before)


def load(loader, name: str, where: str, **options):
    """Load from `where`, running no foreign and no pickled code, and leaving no weight to chance."""
    from transformers import AutoConfig, AutoTokenizer

    options["trust_remote_code"] = False
    if loader in (AutoConfig, AutoTokenizer):
        loaded = loader.from_pretrained(where, **options)
        if loader is AutoTokenizer and not n_plain(loaded):  # transformers makes an empty one where its files lack
            raise ParameterError(f"model {name!r}: {TABLES['words']['backend tokenizer']}")
        return loaded
    model, info = loader.from_pretrained(where, weights_only=True, output_loading_info=True, **options)
    if info["missing_keys"]:  # transformers draws them at random
        few = ", ".join(sorted(info["missing_keys"])[:2])
        raise ParameterError(f"model {name!r}: its files lack weights ({few}, …); name a model that is whole")
    _announce_pickle(name, where, options.get("revision"))
    if heads := sorted(key for key in info["unexpected_keys"] if key.startswith(("score.", "classifier.", "v_head."))):
        print(f"model {name!r}: its trained head ({heads[0]}) is not used; a fresh unit is trained", flush=True)
    return model


@cache
def _announce_pickle(name: str, where: str, revision: str | None) -> None:
    """Say, once in a process, that the weights in a folder, or in transformers' own cache, are pickles only."""

    def is_there(file: str) -> bool:
        if Path(where).is_dir():
            return (Path(where) / file).is_file()
        return isinstance(try_to_load_from_cache(where, file, revision=revision), str)

    safe, pickled = (is_there(f) or is_there(f"{f}.index.json") for f in ("model.safetensors", "pytorch_model.bin"))
    if pickled and not safe:
        print(f"model {name!r}: read from pickle, with weights_only=True", flush=True)


def check_weights(name: str) -> None:
    """Raise a ParameterError for a model's folder on this machine that has no weights, or pointers to them."""
    folder = Path(resolve(name))
    kinds = (*TABLES["safetensors"], *TABLES["pickles"], "adapter_model.*")
    files = sorted(file for kind in kinds for file in folder.glob(kind))
    if folder.is_dir() and not files:
        raise ParameterError(f"model {name!r}: {NO_WEIGHTS}")
    for file in files:
        with open(file, "rb") as weights:
            if weights.read(len(LFS)) == LFS:
                raise ParameterError(f"model {name!r}: {file} is a pointer of Git LFS; run git lfs pull in {folder}")


def check_vocabulary(name: str, tokenizer, config) -> None:
    """Raise a ParameterError unless a model has an embedding for each token that ordinary text turns into."""
    n_tokens, n_embeddings = n_plain(tokenizer), config.get_text_config().vocab_size
    if n_tokens > n_embeddings:
        sizes = f"{n_tokens} tokens, its model only {n_embeddings}"
        raise ParameterError(f"tokenizer of {name!r} has {sizes}; they do not belong together")


def check_architecture(name: str, config) -> None:
    """Raise a ParameterError unless a model is a decoder of text, each of whose tokens sees those before it alone."""
    from transformers.models.auto import modeling_auto as known

    text, kind = config.get_text_config(), config.model_type
    if getattr(config, "is_encoder_decoder", False):
        reason = "an encoder-decoder"
    elif hasattr(config, "vision_config") or hasattr(config, "audio_config"):
        reason = "a model with a part for images or sound"
    elif text.model_type in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(text, "is_decoder", False):
        reason = "an encoder, whose tokens see later ones"
    elif text.model_type not in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        reason = "no causal language model"
    else:
        return
    raise ParameterError(f"model {name!r}: it is {reason} ({kind}); choose a causal one, such as GPT-2, OPT, Llama")


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
    except FAILURES as error:
        text, chain = " ".join(str(error).split()), [error]
        while chain[-1].__cause__:
            chain.append(chain[-1].__cause__)
        kinds = {kind.__name__ for link in chain for kind in type(link).__mro__}
        reasons = [reason for kind, reason in TABLES["kinds"].items() if kind in kinds]
        reasons += [reason for words, reason in TABLES["words"].items() if words in str(error)]
        reason = reasons[0] if reasons else f"{text[:160].rstrip('.')}; {remedy}"
        raise ParameterError(f"{what} cannot be {done}: {reason}") from error
