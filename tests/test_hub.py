"""Fetching from a small hub on this machine: what is downloaded, recorded, refused; and loading without network."""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
import yaml
from conftest import small_params
from huggingface_hub import constants
from test_forms import CODE, FOREIGN, as_pickle, assert_same_weights, changed, files_of, put, refused

from w2s import data, models
from w2s.app import cli
from w2s.params import HOME, ParameterError, StudyParams
from w2s.sources import fetch as fetching
from w2s.sources import hub
from w2s.sources.fetch import fetch
from w2s.study import Study

LARGE = (".safetensors", ".bin", ".gz", ".h5", ".msgpack", ".onnx", ".gguf")
COMMIT = "0123456789abcdef" * 2 + "01234567"
ERRORS = {"RepoNotFound": 401, "RevisionNotFound": 404, "EntryNotFound": 404, "GatedRepo": 403, "Refused": 403}
JUNK = ["tf_model.h5", "flax_model.msgpack", "original/model.safetensors", "onnx/model.onnx", "m.gguf", "code.py"]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.asked.append((self.command, path))
        answer = self.answer(path)
        content = b"" if answer in ERRORS else answer
        self.send_response(ERRORS.get(answer, 200))
        headers = {"Content-Length": len(content), "ETag": f'"{sha256(content)}"', "X-Repo-Commit": COMMIT}
        for key, value in (headers | ({"X-Error-Code": answer} if answer in ERRORS else {})).items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def answer(self, path: str) -> bytes | str:
        """What a page of the API, or a file, holds, or the code of an error."""
        api = path.startswith("api/")
        path = path.removeprefix("api/") if api else path if path.startswith("datasets/") else f"models/{path}"
        kind, org, name, *rest = path.split("/")
        repo = f"{kind}/{org}/{name}"
        if repo not in self.server.repos:
            return "RepoNotFound"
        if len(rest) > 1 and rest[1] not in ("main", "v1", COMMIT):
            return "RevisionNotFound"
        if not api and repo in self.server.gated and self.headers["Authorization"] != "Bearer secret":
            return "GatedRepo"
        files = self.server.repos[repo]
        if api and rest[:1] in ([], ["revision"]):
            siblings = [self.sibling(file, content) for file, content in files.items()]
            return json.dumps({"id": f"{org}/{name}", "sha": COMMIT, "siblings": siblings}).encode()
        return files.get("/".join(rest[2:]), "EntryNotFound") if not api else "EntryNotFound"

    @staticmethod
    def sibling(file, content):
        digest = sha256(content)
        lfs = {"lfs": {"size": len(content), "sha256": digest, "pointerSize": 1}} if file.endswith(LARGE) else {}
        return {"rfilename": file, "size": len(content), "blobId": digest[:40], **lfs}


class FakeHub(ThreadingHTTPServer):
    """Serves repositories (models/org/name) of one commit each as huggingface.co does, and keeps what was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.gated, self.asked = {}, set(), []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def downloads(self) -> list[str]:
        return [path for method, path in self.asked if method == "GET" and "/resolve/" in path]


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A running hub, in the place of the real one, with empty caches."""
    with FakeHub() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        values = {"ENDPOINT": running.url, "HUGGINGFACE_CO_URL_TEMPLATE": template}
        values |= {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_TOKEN_PATH": str(tmp_path / "token")}
        for name, value in values.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path) -> Path:
    """An empty folder for what is fetched; what foreign code writes would stand beside it."""
    monkeypatch.chdir(tmp_path)
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


def without(files: dict[str, bytes], *words: str) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if not any(word in name for word in words)}


def study(tmp_path, *names: str, **changes) -> StudyParams:
    values = {"strong_models": ["pocket-64"], "intermediate_models": []}
    return small_params(["pocket-40a"], tmp_path, **{**values, "weak_models": list(names) or ["pocket-40a"], **changes})


def test_the_command_fetches_over_http_and_then_needs_no_network(server, folder, tiny, tiny_models, tmp_path, request):
    server.repos["models/org/tiny"] = tiny | dict.fromkeys([*JUNK, "pytorch_model.bin"], b"junk")
    (tmp_path / "p.yaml").write_text("weak_models: [org/tiny@v1]\nstrong_models: [pocket-64]\n")
    command = [sys.executable, "-m", "w2s.app.cli", "fetch", str(tmp_path / "p.yaml")]
    environment = {**os.environ, "HF_ENDPOINT": server.url, "PYTHONPATH": str(HOME)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size = sum(map(len, tiny.values())) / 1e6
    assert f"model 'org/tiny@v1': commit {COMMIT[:12]}, {len(tiny)} files, {size:.1f} MB" in done.stdout
    place = folder / "models" / f"org--tiny@{COMMIT[:12]}"
    assert files_of(place) == tiny
    entry = hub.index()["model"]["org/tiny@v1"]
    assert (entry["repo"], entry["commit"], hub.hub_folder() / entry["folder"]) == ("org/tiny", COMMIT, place)
    assert entry["files"] == {name: sha256(content) for name, content in tiny.items()}

    request.getfixturevalue("no_network")
    assert models.resolve("org/tiny@v1") == str(place) and models.resolve("org/tiny") == "org/tiny"
    assert_same_weights("org/tiny@v1", tiny_models[0])
    assert models.load_tokenizer("org/tiny@v1").get_vocab() == models.load_tokenizer(tiny_models[0]).get_vocab()
    assert models.fingerprint("org/tiny@v1") == models.fingerprint(tiny_models[0])
    spec = Study.open(study(tmp_path, "org/tiny@v1", offline=True)).gold("org/tiny@v1", 0)
    assert "tiny@v1" in spec.name and "/" not in spec.name


def test_a_second_fetch_downloads_nothing_but_what_is_damaged(server, folder, tiny, tmp_path, capsys):
    server.repos["models/org/tiny"], params = tiny, study(tmp_path, "org/tiny")
    fetch(params)
    before = (folder / hub.INDEX).read_text()
    server.asked.clear()
    fetch(params)
    assert server.asked == [] and "'org/tiny': here and whole, commit" in capsys.readouterr().out

    weights = folder / hub.index()["model"]["org/tiny"]["folder"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    fetch(params)
    assert server.downloads() == [f"org/tiny/resolve/{COMMIT}/model.safetensors"]
    assert "'org/tiny': model.safetensors is damaged or gone" in capsys.readouterr().out
    assert weights.read_bytes() == tiny["model.safetensors"] and (folder / hub.INDEX).read_text() == before

    weights.unlink()
    with pytest.raises(ParameterError, match="'org/tiny'.*model.safetensors was fetched and is gone; w2s fetch"):
        models.resolve("org/tiny")
    fetch(params)
    assert weights.is_file()


def test_an_interrupted_fetch_records_nothing_and_goes_on(server, tiny, tmp_path, capsys, monkeypatch):
    server.repos["models/org/tiny"] = tiny
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
    server.repos["models/org/tiny"], honest = tiny, Handler.sibling
    lie = {"lfs": {"size": 1, "sha256": "0" * 64, "pointerSize": 1}}
    lying = staticmethod(lambda file, content: honest(file, content) | (lie if file.endswith(LARGE) else {}))
    monkeypatch.setattr(Handler, "sibling", lying)
    message = refused(fetch, study(tmp_path, "org/tiny"))
    assert "'org/tiny': model.safetensors arrived damaged; run w2s fetch again" in message
    assert hub.index()["model"] == {} and not list(folder.glob("models/*/model.safetensors"))


def test_no_network_no_tables_no_room(server, tiny, tmp_path, monkeypatch):
    server.repos["models/org/tiny"] = tiny
    with monkeypatch.context() as cut_off:
        cut_off.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
        assert "'org/tiny' cannot be fetched: no network" in refused(fetch, study(tmp_path, "org/tiny"))
    server.repos["datasets/Anthropic/hh-rlhf"] = {"README.md": b"", "red-team-attempts/train.jsonl.gz": b""}
    start = "dataset 'Anthropic/hh-rlhf/harmless-base' cannot be fetched: its repository holds no .json"
    assert refused(fetch, study(tmp_path, data="hh")).startswith(start)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(ParameterError, match="'org/tiny': needs .* MB.*set W2S_HUB"):
        fetch(study(tmp_path, "org/tiny"))
    assert server.downloads() == []


def test_the_folder_of_fetched_files_and_a_damaged_index(folder, monkeypatch):
    put(folder, {hub.INDEX: b"{"})
    assert "fetched.json: not readable as JSON; delete it" in refused(models.resolve, "org/tiny")
    monkeypatch.delenv("W2S_HUB")
    assert hub.hub_folder() == HOME / "outputs/hub"


def test_fetched_hh_gives_the_pairs_of_a_folder_without_network(server, tmp_path, monkeypatch, request):
    files = {"README.md": b"---\nlicense: mit\n---\n", ".gitattributes": b"", "hh.py": b"junk"}
    for name in (f"{s}/{p}" for s in ("harmless-base", "helpful-base", "red-team-attempts") for p in ("train", "test")):
        prompts = [f"\n\nHuman: {name} {i}\n\nAssistant:" for i in range(100)]
        lines = [json.dumps({"chosen": f"{prompt} good", "rejected": f"{prompt} bad"}) for prompt in prompts]
        files[f"{name}.jsonl.gz"] = gzip.compress("\n".join(lines).encode(), mtime=0)
    server.repos["datasets/Anthropic/hh-rlhf"] = files
    fetch(study(tmp_path, data="hh", n_helpful=0, conflicts=["none"], offline=True))
    assert {Path(p).name for p in server.downloads()} == {"README.md", "train.jsonl.gz", "test.jsonl.gz"}
    assert all("README" in path or "/harmless-base/" in path for path in server.downloads())

    both = study(tmp_path, data="hh", offline=True)
    lacking = "dataset 'Anthropic/hh-rlhf/helpful-base': not fetched, and offline = True"
    assert refused(data.load, both).startswith(lacking)
    fetch(both)
    request.getfixturevalue("no_network")
    loaded = data.load(both)
    put(tmp_path / "own", files)
    own = study(tmp_path, data="hh", data_dir=str(tmp_path / "own"))
    assert loaded.fingerprint == data.load(own).fingerprint and loaded.source["read_from"] == "hub"
    assert hub.wanted(own) == []
    monkeypatch.setenv("W2S_DATA_DIR", str(tmp_path / "own"))
    assert hub.wanted(both) == []


def test_fetched_cai_keeps_the_parts_that_its_card_names_and_its_revisions_are_chosen(server, tmp_path, request):
    repo, parts = "HuggingFaceH4/cai-conversation-harmless", ("train_sft", "train_prefs", "test_sft", "test_prefs")
    card = {"configs": [{"config_name": "default", "data_files": [{"split": p, "path": f"data/{p}-*"} for p in parts]}]}
    files = {"README.md": f"---\n{yaml.safe_dump(card)}---\n".encode(), "data/README.md": b"junk"}
    for part in parts:
        texts = {"init_prompt": part + " {}", "init_response": "harm", "revision_response": "sorry"}
        rows = [{k: {"content": v.format(i), "role": "user"} for k, v in texts.items()} for i in range(60)]
        chat = [{"content": "a", "role": "user"}, {"content": "b", "role": "assistant"}]
        other = {"prompt": "a", "messages": chat, "chosen": chat, "rejected": chat}
        files[f"data/{part}-00000-of-00001.parquet"] = pd.DataFrame([row | other for row in rows]).to_parquet()
    server.repos[f"datasets/{repo}"] = files
    params = study(tmp_path, data="cai", n_helpful=0, conflicts=["none"], offline=True)
    fetch(params)
    assert len(server.downloads()) == 5
    request.getfixturevalue("no_network")
    loaded = data.load(params)
    assert set(loaded.source["files"]) == {f"{repo}/{part}" for part in parts}
    assert loaded.gt.prompt.str.fullmatch(r"\n\nHuman: (train|test)_(sft|prefs) \d+\n\nAssistant:").all()
    assert set(loaded.gt.chosen) == {" sorry"} and set(loaded.gt.rejected) == {" harm"}
    put(tmp_path / "own", files)
    own = params.model_copy(update={"data_dir": str(tmp_path / "own")})
    assert data.load(own).fingerprint == loaded.fingerprint


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


@pytest.fixture(params=["fetch", "look up"])
def get(request, server, tmp_path):
    """Get a model in one way or the other, and load it."""

    def get_model(name: str):
        if request.param == "fetch":
            fetch(study(tmp_path, name))
        models.matching_tokenizer(name)
        return models.load_language_model(name)

    return get_model


def test_a_pinned_model_is_had_either_way_and_a_gated_one_with_a_token(get, server, tiny, monkeypatch):
    server.repos["models/org/tiny"] = tiny
    server.gated.add("models/org/tiny")
    assert "it is gated; accept its licence on its page and set HF_TOKEN" in refused(get, "org/tiny@v1")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert get("org/tiny@v1").config.n_embd == 8
    assert all("/resolve/main/" not in path for path in server.downloads())


CANNOT_BE_HAD = {
    "org/none": "the hub has none of that name",
    "org/tiny@v9": "the hub has no such revision",
    "org/foreign": "it wants trust_remote_code, which w2s never grants; choose a model that transformers knows",
    "org/bare": "it has no weights: neither model.safetensors nor pytorch_model.bin",
    "org/mute": "it has no tokenizer that can be used",
    "org/odd": "651 tokens, its model only 9; they do not belong together",
    "a//b": "Repo id must",
}


@pytest.mark.parametrize(("name", "words"), CANNOT_BE_HAD.items())
def test_a_model_that_cannot_be_had_is_not_downloaded_first(get, server, tiny, name, words, tmp_path):
    foreign, mute = changed(tiny, **FOREIGN) | {"code.py": CODE}, without(tiny, "token", "vocab", "merges")
    repositories = {"tiny": tiny, "foreign": foreign, "bare": without(tiny, "safetensors"), "mute": mute}
    repositories["odd"] = changed(tiny, vocab_size=9)
    server.repos |= {f"models/org/{key}": files for key, files in repositories.items()}
    message = refused(get, name)
    assert message.startswith(f"{'tokenizer of' if name == 'org/odd' else 'model'} {name!r}") and words in message
    assert not (tmp_path / "executed").exists() and hub.index()["model"] == {}
    assert not any(path.endswith(("code.py", ".safetensors")) for path in server.downloads())


def test_a_hub_in_trouble_and_no_look_up_allowed(get, server, tiny, monkeypatch):
    server.repos["models/org/tiny"] = tiny
    monkeypatch.setattr(Handler, "answer", lambda self, path: "Refused")
    with pytest.raises(ParameterError, match="model 'org/tiny' cannot be .*: the hub refuses to give it"):
        get("org/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refused(get, "org/tiny")
    assert "'org/tiny' cannot be " in message and ": no network" in message
    assert message.endswith("w2s fetch PARAMS.yaml gets it where there is a network")


def test_honest_pickles_are_read_and_announced_once(get, server, tiny_models, tmp_path, capsys, monkeypatch):
    asked = []  # the web service that converts pickles
    monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION", raising=False)
    monkeypatch.setattr("transformers.modeling_utils.auto_conversion", lambda *args, **options: asked.append(args))
    hub._announce_pickle.cache_clear()
    files = files_of(as_pickle(tiny_models[0], tmp_path / "pickle"))
    server.repos["models/org/old"] = files | dict.fromkeys(JUNK, b"junk")
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
