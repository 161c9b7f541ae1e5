"""Files that nobody reads half of, and where the kit lies."""

from __future__ import annotations

import io
import json
import os
import platform
import re
import sys
from collections.abc import Callable
from functools import cache
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import psutil
import yaml

PACKAGE = Path(__file__).resolve().parent
# The checkout with notebooks/ and params/; the current folder when the package stands alone.
HOME = PACKAGE.parent if (PACKAGE.parent / "notebooks").is_dir() else Path.cwd()
ANSWERS = "answers.json"  # in a study's folder: the answers to exercises that checks have seen
HEADLESS = "W2S_HEADLESS"  # set by `w2s run` for the notebooks that it executes: the package that runs them
open_study: Path | None = None  # the folder of the study that this kernel's notebook works with; w2s.lab sets it
if os.environ.get(HEADLESS, str(PACKAGE)) != str(PACKAGE):
    raise ImportError(f"this kernel imports w2s from {PACKAGE}, but the study is run by {os.environ[HEADLESS]}")


@cache
def located(path: str | Path) -> Path:
    """A path absolute or relative to the kit's folder: the current one differs between notebook and command line."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else (HOME / path).resolve()


def write_atomic(path: Path, write: Callable[[Path], object]) -> Path:
    """Call `write` with a temporary name beside `path`, then rename; when it fails, an older file stays as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{uuid4().hex[:8]}.tmp")
    try:
        write(temporary)
        temporary.chmod(0o644)
        fsync(temporary)
        os.replace(temporary, path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def fsync(path: Path) -> None:
    """Have a file, or a folder's list of names, on the disk before anything relies on it."""
    if path.is_dir() and os.name == "nt":  # which cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path) -> None:
    """Remove the temporary files in a folder whose writers were killed."""
    for path in folder.rglob(".*.tmp"):
        host, _, rest = path.name.removesuffix(".tmp").rpartition(".")[2].partition("-")
        pid = rest.partition("-")[0]
        if host == _host() and pid.isdigit() and not psutil.pid_exists(int(pid)):
            path.unlink(missing_ok=True)


def _host() -> str:
    return sha256(platform.node().encode()).hexdigest()[:8]


def digest(path: Path) -> str:
    """The sha256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content) -> None:
    write_atomic(path, lambda p: p.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8"))


def write_table(path: Path, table) -> None:
    write_atomic(path, lambda p: table.to_parquet(p, index=False))


def spell_out() -> None:
    """Have what the encoding of the terminal lacks spelt out where this process prints, instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class _Strict(yaml.SafeLoader):
    """YAML without surprises: 0100, yes, 1:30, 1_000 and 2026-01-01 are the texts that they look like."""

    yaml_implicit_resolvers: ClassVar[dict] = {}

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"the key {key!r} stands there {keys.count(key)} times; leave one")
        return super().construct_mapping(node, deep)


for _tag, _form, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"), ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(0|[1-9]\d*)", "-+0123456789"),
    ("float", r"[-+]?(\d+\.\d*|\.\d+|(0|[1-9]\d*)(?=[eE]))([eE][-+]?\d+)?", "-+.0123456789"),
):  # fmt: skip
    _Strict.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_form})$"), list(_first))


def read_yaml(text: str) -> Any:
    """What a YAML text says; ValueError on one line for one that cannot be read, or has a key twice."""
    try:
        return yaml.load(text, _Strict)
    except (yaml.YAMLError, RecursionError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())) from None
