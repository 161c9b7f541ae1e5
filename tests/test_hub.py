"""Fetching from a small hub on this machine: what is downloaded, recorded, refused; and loading without network."""

import gzip
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
import torch
import yaml
from conftest import small_params
from huggingface_hub import constants
from transformers import AutoModelForCausalLM

from w2s import data, models
from w2s.app import cli
from w2s.params import HOME, ParameterError, StudyParams
from w2s.sources import fetch as fetching
from w2s.sources import hub
from w2s.sources.fetch import fetch
from w2s.study import Study

LARGE = (".safetensors", ".bin", ".gz", ".h5", ".msgpack", ".onnx", ".gguf")
SHARD = b'{"metadata": {}, "weight_map": {"transformer.wte.weight": "pytorch_model-1-of-1.bin"}}'
JUNK = ["tf_model.h5", "flax_model.msgpack", "original/model.safetensors", "onnx/model.onnx", "m.gguf", "code.py"]


def commit_of(repo: str) -> str:
    return hashlib.sha1(repo.encode()).hexdigest()


class FakeHub(ThreadingHTTPServer):
    """Serves repositories of one commit each as huggingface.co does, and keeps a list of what was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.gated, self.asked = {}, set(), []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def add(self, repo: str, files: dict[str, bytes]) -> str:
        """`repo` is models/org/name or datasets/org/name; returns the commit."""
        self.repos[repo] = files
        return commit_of(repo)

    def downloads(self) -> list[str]:
        return [path for method, path in self.asked if method == "GET" and "/resolve/" in path]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.answer()

    do_HEAD = do_GET

    def answer(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.asked.append((self.command, path))
        api = path.startswith("api/")
        path = path.removeprefix("api/") if api else path if path.startswith("datasets/") else f"models/{path}"
        kind, org, name, *rest = path.split("/")
        repo = f"{kind}/{org}/{name}"
        if repo not in self.server.repos:
            return self.send(401 if api else 404, error="RepoNotFound")
        commit, files = commit_of(repo), self.server.repos[repo]
        if len(rest) > 1 and rest[1] not in ("main", "v1", commit):
            return self.send(404, error="RevisionNotFound")
        if not api and repo in self.server.gated and self.headers["Authorization"] != "Bearer secret":
            return self.send(403, error="GatedRepo")
        if api and rest[:1] in ([], ["revision"]):
            siblings = [self.sibling(file, content) for file, content in files.items()]
            return self.send(200, json.dumps({"id": f"{org}/{name}", "sha": commit, "siblings": siblings}).encode())
        file = "/".join(rest[2:])
        if api or file not in files:
            return self.send(404, error="EntryNotFound", commit=commit)
        return self.send(200, files[file], commit=commit)

    @staticmethod
    def sibling(file, content):
        digest = hashlib.sha256(content).hexdigest()
        lfs = {"lfs": {"size": len(content), "sha256": digest, "pointerSize": 1}} if file.endswith(LARGE) else {}
        return {"rfilename": file, "size": len(content), "blobId": digest[:40], **lfs}

    def send(self, status, content=b"", error=None, commit=None):
        self.send_response(status)
        headers = {"Content-Length": len(content), "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        for key, value in {**headers, "X-Error-Code": error, "X-Repo-Commit": commit}.items():
            if value is not None:
                self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A running hub, in the place of the real one, with empty caches."""
    with FakeHub() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path) -> Path:
    """An empty folder for what is fetched."""
    monkeypatch.setenv("W2S_HUB", str(tmp_path / "hub"))
    for variable in ("HF_TOKEN", "W2S_DATA_DIR"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path / "hub"


@pytest.fixture
def no_network(monkeypatch):
    """Nothing can be reached, and nobody tries."""
    tried = []

    def refuse(*address, **options):
        tried.append(address)
        raise OSError("no network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    yield
    assert not tried


@pytest.fixture
def tiny(tiny_models) -> dict[str, bytes]:
    """The files of a whole model."""
    return files_of(tiny_models[0])


def files_of(folder: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def changed(files: dict[str, bytes], **config) -> dict[str, bytes]:
    return files | {"config.json": json.dumps(json.loads(files["config.json"]) | config).encode()}


def without(files: dict[str, bytes], *words: str) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if not any(word in name for word in words)}


def study(tmp_path, *names: str, **changes) -> StudyParams:
    values = {"strong_models": ["pocket-64"], "intermediate_models": []}
    return small_params(["pocket-27"], tmp_path, **{**values, "weak_models": list(names) or ["pocket-27"], **changes})


def as_pickle(folder: str, target: Path, content=None) -> Path:
    """A copy of a model with pytorch_model.bin, its own weights or `content`, in the place of safetensors."""
    shutil.copytree(folder, target)
    weights = AutoModelForCausalLM.from_pretrained(folder).state_dict() if content is None else content
    (target / "model.safetensors").unlink()
    torch.save(weights, target / "pytorch_model.bin")
    return target


def assert_same_weights(name: str, other: str) -> None:
    one, two = (models.load_language_model(model).state_dict() for model in (name, other))
    assert all(torch.equal(one[key], two[key]) for key in two)


def refused(act, *arguments) -> str:
    """The message, of one line, with which `act` refuses."""
    with pytest.raises(ParameterError) as caught:
        act(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Fetching


def test_the_command_fetches_over_http_and_then_needs_no_network(server, folder, tiny, tiny_models, tmp_path, request):
    commit = server.add("models/org/tiny", tiny | dict.fromkeys([*JUNK, "pytorch_model.bin"], b"junk"))
    (tmp_path / "p.yaml").write_text("weak_models: [org/tiny@v1]\nstrong_models: [pocket-64]\n")
    command = [sys.executable, "-m", "w2s.app.cli", "fetch", str(tmp_path / "p.yaml")]
    done = subprocess.run(command, env={**os.environ, "HF_ENDPOINT": server.url}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size = sum(map(len, tiny.values())) / 1e6
    assert f"model 'org/tiny@v1': commit {commit[:12]}, {len(tiny)} files, {size:.1f} MB" in done.stdout
    place = folder / "models" / f"org--tiny@{commit[:12]}"
    assert files_of(place) == tiny
    entry = hub.index()["model"]["org/tiny@v1"]
    assert (entry["repo"], entry["commit"], hub.hub_folder() / entry["folder"]) == ("org/tiny", commit, place)
    assert entry["files"] == {name: hashlib.sha256(content).hexdigest() for name, content in tiny.items()}

    request.getfixturevalue("no_network")
    assert models.resolve("org/tiny@v1") == str(place) and models.resolve("org/tiny") == "org/tiny"
    assert_same_weights("org/tiny@v1", tiny_models[0])
    assert models.load_tokenizer("org/tiny@v1").get_vocab() == models.load_tokenizer(tiny_models[0]).get_vocab()
    assert models.fingerprint("org/tiny@v1") == models.fingerprint(tiny_models[0])
    spec = Study.open(study(tmp_path, "org/tiny@v1", offline=True)).gold("org/tiny@v1", 0)
    assert "tiny@v1" in spec.name and "/" not in spec.name


def test_a_second_fetch_downloads_nothing_but_what_is_damaged(server, folder, tiny, tmp_path, capsys):
    commit = server.add("models/org/tiny", tiny)
    params = study(tmp_path, "org/tiny")
    fetch(params)
    before = (folder / hub.INDEX).read_text()
    server.asked.clear()
    fetch(params)
    assert server.asked == [] and "'org/tiny': here and whole, commit" in capsys.readouterr().out

    weights = folder / hub.index()["model"]["org/tiny"]["folder"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    fetch(params)
    assert server.downloads() == [f"org/tiny/resolve/{commit}/model.safetensors"]
    assert "'org/tiny': model.safetensors is damaged or gone" in capsys.readouterr().out
    assert weights.read_bytes() == tiny["model.safetensors"] and (folder / hub.INDEX).read_text() == before

    weights.unlink()
    with pytest.raises(ParameterError, match="'org/tiny'.*model.safetensors was fetched and is gone; w2s fetch"):
        models.resolve("org/tiny")
    fetch(params)
    assert weights.is_file()


def test_an_interrupted_fetch_records_nothing_and_goes_on(server, tiny, tmp_path, capsys, monkeypatch):
    server.add("models/org/tiny", tiny)
    (tmp_path / "p.yaml").write_text("weak_models: [org/tiny]\n")
    download = fetching.hf_hub_download

    def interrupted(repo, file, **options):
        if file == "model.safetensors":
            raise KeyboardInterrupt
        return download(repo, file, **options)

    monkeypatch.setattr(fetching, "hf_hub_download", interrupted)
    assert cli.main(["fetch", str(tmp_path / "p.yaml")]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert hub.index() == {"model": {}, "dataset": {}} and models.resolve("org/tiny") == "org/tiny"

    monkeypatch.setattr(fetching, "hf_hub_download", download)
    server.asked.clear()
    assert cli.main(["fetch", str(tmp_path / "p.yaml")]) == 0
    assert [Path(path).name for path in server.downloads()] == ["model.safetensors"]


def test_what_is_local_is_not_fetched_but_the_base_of_local_adapters(server, folder, tiny_models, tmp_path, capsys):
    fetch(study(tmp_path, tiny_models[0]))
    assert server.asked == [] and not folder.exists() and "nothing to fetch" in capsys.readouterr().out
    adapters = shutil.copytree(tiny_models[0], tmp_path / "adapters")
    (adapters / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    items = hub.wanted(study(tmp_path, str(adapters), "org/base", "org/other@v1"))
    assert [(item.repo, item.revision) for item in items] == [("org/base", None), ("org/other", "v1")]


def test_a_file_that_arrives_damaged_is_not_recorded(server, folder, tiny, tmp_path, monkeypatch):
    server.add("models/org/tiny", tiny)
    honest = Handler.sibling
    lie = {"lfs": {"size": 1, "sha256": "0" * 64, "pointerSize": 1}}
    lying = staticmethod(lambda file, content: honest(file, content) | (lie if file.endswith(LARGE) else {}))
    monkeypatch.setattr(Handler, "sibling", lying)
    message = refused(fetch, study(tmp_path, "org/tiny"))
    assert "'org/tiny': model.safetensors arrived damaged; run w2s fetch again" in message
    assert hub.index()["model"] == {} and not list(folder.glob("models/*/model.safetensors"))


def test_a_disk_without_room(server, tiny, tmp_path, monkeypatch):
    server.add("models/org/tiny", tiny)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(ParameterError, match="'org/tiny': needs .* MB.*set W2S_HUB"):
        fetch(study(tmp_path, "org/tiny"))
    assert server.downloads() == []


def test_the_folder_of_fetched_files_and_a_damaged_index(folder, monkeypatch):
    folder.mkdir()
    (folder / hub.INDEX).write_text("{")
    assert "fetched.json: not readable as JSON; delete it" in refused(models.resolve, "org/tiny")
    monkeypatch.delenv("W2S_HUB")
    assert hub.hub_folder() == HOME / "outputs/hub"


# Datasets


def hh_files(n: int) -> dict[str, bytes]:
    """A small copy of the HH repository."""
    files = {"README.md": b"---\nlicense: mit\n---\n", ".gitattributes": b"", "hh.py": b"junk"}
    for name in (f"{s}/{p}" for s in ("harmless-base", "helpful-base", "red-team-attempts") for p in ("train", "test")):
        prompts = [f"\n\nHuman: {name} {i}\n\nAssistant:" for i in range(n)]
        lines = [json.dumps({"chosen": f"{prompt} good", "rejected": f"{prompt} bad"}) for prompt in prompts]
        files[f"{name}.jsonl.gz"] = gzip.compress("\n".join(lines).encode(), mtime=0)
    return files


def test_fetched_hh_gives_the_pairs_of_a_folder_without_network(server, folder, tmp_path, monkeypatch, request):
    files = hh_files(100)
    server.add("datasets/Anthropic/hh-rlhf", files)
    fetch(study(tmp_path, data="hh", n_helpful=0, conflicts=["none"], offline=True))
    assert {Path(p).name for p in server.downloads()} == {"README.md", "train.jsonl.gz", "test.jsonl.gz"}
    assert all("README" in path or "/harmless-base/" in path for path in server.downloads())

    both = study(tmp_path, data="hh", offline=True)
    lacking = "dataset 'Anthropic/hh-rlhf/helpful-base': not fetched, and offline = True"
    assert refused(data.load, both).startswith(lacking)
    fetch(both)
    request.getfixturevalue("no_network")
    loaded = data.load(both)
    for name, content in files.items():
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name).write_bytes(content)
    own = study(tmp_path, data="hh", data_dir=str(tmp_path / "own"))
    assert loaded.fingerprint == data.load(own).fingerprint and loaded.source["read_from"] == "hub"
    assert hub.wanted(own) == []
    monkeypatch.setenv("W2S_DATA_DIR", str(tmp_path / "own"))
    assert hub.wanted(both) == []


def test_fetched_cai_keeps_the_parts_that_its_card_names(server, tmp_path, request):
    parts = ("train_sft", "train_prefs", "test_sft", "test_prefs")
    card = {"configs": [{"config_name": "default", "data_files": [{"split": p, "path": f"data/{p}-*"} for p in parts]}]}
    files = {"README.md": f"---\n{yaml.safe_dump(card)}---\n".encode(), "data/README.md": b"junk"}
    for part in parts:
        rows = [{"init_prompt": f"{part} {i}", "init_response": "x", "revision_response": "y"} for i in range(60)]
        files[f"data/{part}-00000-of-00001.parquet"] = pd.DataFrame(rows).to_parquet()
    server.add("datasets/HuggingFaceH4/cai-conversation-harmless", files)
    params = study(tmp_path, data="cai", n_helpful=0, conflicts=["none"], offline=True)
    fetch(params)
    assert len(server.downloads()) == 5
    request.getfixturevalue("no_network")
    assert set(data.load(params).source["files"]) == {f"HuggingFaceH4/cai-conversation-harmless/{p}" for p in parts}


def test_a_dataset_without_tables(server, tmp_path):
    server.add("datasets/Anthropic/hh-rlhf", {"README.md": b"", "red-team-attempts/train.jsonl.gz": b""})
    message = refused(fetch, study(tmp_path, data="hh"))
    assert message.startswith(
        "dataset 'Anthropic/hh-rlhf/harmless-base' cannot be fetched: its repository holds no .json"
    )


# Names


def test_a_name_is_a_repository_and_perhaps_a_revision(tmp_path):
    for name in ("gpt2", "org/model", "gpt2@607a30d", "org/model@v1.0"):
        repo, _, revision = name.partition("@")
        assert hub.split(name) == (repo, revision or None) and hub.resolve(name) == name
    for name in ("org/model@", "@main", "org/model@refs/pr/1"):
        message = refused(hub.wanted, study(tmp_path, name))
        assert "write org/model@revision" in message and repr(name) in message


def test_offline_names_the_model_and_the_remedy_whatever_the_pairs_are(tiny_models, tmp_path):
    data.load(study(tmp_path, "org/tiny"))
    data.load(study(tmp_path, tiny_models[0], offline=True))
    message = refused(data.load, study(tmp_path, "org/tiny", offline=True))
    assert message.startswith("model 'org/tiny': not fetched, and offline = True; w2s fetch")


# What cannot be had, and what is refused, by fetching and by looking up


@pytest.fixture(params=["fetch", "look up"])
def get(request, server, tmp_path):
    """Get a model in one way or the other, and load it."""

    def get_model(name: str):
        if request.param == "fetch":
            fetch(study(tmp_path, name))
        models.load_config(name)
        models.load_tokenizer(name)
        return models.load_language_model(name)

    return get_model


def test_a_pinned_model_is_had_either_way_and_a_gated_one_with_a_token(get, server, tiny, monkeypatch):
    server.add("models/org/tiny", tiny)
    server.gated.add("models/org/tiny")
    assert "it is gated; accept its licence on its page and set HF_TOKEN" in refused(get, "org/tiny@v1")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert get("org/tiny@v1").config.n_embd == 8
    assert all("/resolve/main/" not in path for path in server.downloads())


FOREIGN = {"model_type": "strange", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
CANNOT_BE_HAD = {
    "org/none": "the hub has none of that name",
    "org/tiny@v9": "the hub has no such revision",
    "org/foreign": "it wants trust_remote_code, which w2s never grants; choose a model that transformers knows",
    "org/bare": "it has no weights: neither model.safetensors nor pytorch_model.bin",
    "org/mute": "it has no tokenizer that can be used",
    "a//b": "Repo id must",
}


@pytest.mark.parametrize(("name", "words"), CANNOT_BE_HAD.items())
def test_a_model_that_cannot_be_had(get, server, tiny, name, words, tmp_path):
    server.add("models/org/tiny", tiny)
    code = f"open({str(tmp_path / 'executed')!r}, 'w')".encode()
    server.add("models/org/foreign", changed(tiny, **FOREIGN) | {"code.py": code})
    server.add("models/org/bare", without(tiny, "safetensors"))
    server.add("models/org/mute", without(tiny, "token", "vocab", "merges"))
    message = refused(get, name)
    assert message.startswith(f"model {name!r}") and words in message
    assert not (tmp_path / "executed").exists() and hub.index()["model"] == {}
    assert not any(path.endswith("code.py") for path in server.downloads())


def test_a_refused_model_is_not_downloaded_first(server, tiny, tmp_path):
    server.add("models/org/foreign", changed(tiny, **FOREIGN))
    server.add("models/org/odd", changed(tiny, vocab_size=9))
    for name, words in (("org/foreign", "trust_remote_code"), ("org/odd", "do not belong together")):
        assert words in refused(fetch, study(tmp_path, name))
    assert not any("safetensors" in path for path in server.downloads())


def test_a_hub_in_trouble_and_no_look_up_allowed(get, server, tiny, monkeypatch):
    server.add("models/org/tiny", tiny)
    monkeypatch.setattr(Handler, "answer", lambda self: self.send(403))
    with pytest.raises(ParameterError, match="model 'org/tiny' cannot be .*: the hub refuses to give it"):
        get("org/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refused(get, "org/tiny")
    assert "'org/tiny' cannot be " in message and ": no network" in message
    assert message.endswith("w2s fetch PARAMS.yaml gets it where there is a network")


def test_no_network(server, tmp_path):
    server.shutdown()
    server.server_close()
    assert "'org/tiny' cannot be fetched: no network" in refused(fetch, study(tmp_path, "org/tiny"))


# Pickles


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_honest_pickles_are_read_and_announced_once(get, server, tiny_models, tmp_path, capsys, monkeypatch):
    asked = []  # the web service that converts pickles
    monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION", raising=False)
    monkeypatch.setattr("transformers.modeling_utils.auto_conversion", lambda *args, **options: asked.append(args))
    hub._announce_pickle.cache_clear()
    files = files_of(as_pickle(tiny_models[0], tmp_path / "pickle"))
    server.add("models/org/old", files | dict.fromkeys(JUNK, b"junk"))
    get("org/old")
    assert_same_weights("org/old", tiny_models[0])
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("model 'org/old': read from pickle, with weights_only=True") == 1
    if hub.index()["model"]:
        assert "model 'org/old': has its weights as pickle files only; they are read with weights_only=True" in lines
        assert set(hub.index()["model"]["org/old"]["files"]) == set(files)
    for thread in threading.enumerate():
        if thread.name == "Thread-auto_conversion":
            thread.join()
    assert asked == []


def test_sharded_pickles_are_announced_and_safetensors_come_before_pickles(tiny_models, tmp_path, capsys):
    both = shutil.copytree(tiny_models[0], tmp_path / "both")
    torch.save({"x": Evil(tmp_path / "executed")}, both / "pytorch_model.bin")
    models.load_language_model(str(both))
    assert "pickle" not in capsys.readouterr().out and not (tmp_path / "executed").exists()

    folder = as_pickle(tiny_models[0], tmp_path / "pickle")
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    names = {key: f"pytorch_model-{number}-of-2.bin" for key, number in zip(weights, [1, 2] * len(weights))}
    for file in set(names.values()):
        torch.save({key: weights[key] for key in weights if names[key] == file}, folder / file)
    (folder / "pytorch_model.bin").unlink()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    models.load_language_model(str(folder))
    assert "read from pickle" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["zip", "plain"])
def test_a_malicious_pickle_is_not_executed(tiny_models, tmp_path, form, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    evil = {"transformer.wte.weight": Evil(tmp_path / "executed")}
    folder = as_pickle(tiny_models[0], tmp_path / "pickle", evil)
    if form == "plain":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(evil, protocol=2))
    message = refused(models.load_language_model, str(folder))
    assert "pickle holds more than weights" in message and "w2s executes none" in message
    assert not (tmp_path / "executed").exists() and repr(str(folder)) in message
    pickle.loads(pickle.dumps(evil))
    assert (tmp_path / "executed").exists()  # the pickle does bite where it is executed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.safetensors": b"x" * 99}, "a file of its weights is damaged"),
        ({"model.safetensors": None, "pytorch_model.bin": b""}, "a file of its weights is damaged"),
        ({"model.safetensors": None}, "it has no weights: neither model.safetensors nor pytorch_model.bin"),
        ({"model.safetensors": None, "pytorch_model.bin.index.json": SHARD}, "pytorch_model-1-of-1.bin"),
        ({"config.json": {"n_embd": 32}}, "its weights do not have the shapes that its config.json says"),
        ({"config.json": {"n_layer": 3}}, "its files lack weights"),
        ({"config.json": {"model_type": "strange"}}, "does not recognize this architecture"),
        ({"config.json": b"{"}, "not a valid JSON file; check the name"),
    ],
)
def test_a_local_folder_that_is_not_whole(tiny, tmp_path, changes, words):
    config = changes.get("config.json")
    files = changed(tiny, **config) if isinstance(config, dict) else tiny | changes
    for file, content in files.items():
        if content is not None:
            (tmp_path / file).write_bytes(content)
    message = refused(models.load_language_model, str(tmp_path))
    assert words in message and repr(str(tmp_path)) in message


def test_tokenizer_and_model_that_do_not_belong_together(tiny_models):
    tokenizer, config = models.load_tokenizer(tiny_models[0]), models.load_config(tiny_models[0])
    hub.check_vocabulary("x", tokenizer, config)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    hub.check_vocabulary("x", tokenizer, config)
    tokenizer.add_tokens(["zyxw"])
    sizes = f"{config.vocab_size + 2} tokens, its model only {config.vocab_size}"
    assert refused(hub.check_vocabulary, "x", tokenizer, config).startswith(
        f"tokenizer of 'x' has {sizes}; they do not"
    )
