"""Which notebooks of a study need no second execution: nothing that they depend on has changed since."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from w2s.files import write_atomic
from w2s.params import PACKAGE

LIBRARIES = ("matplotlib", "numpy", "pandas", "peft", "scipy", "seaborn", "torch", "transformers")
RECORD = ".executed.json"


class Executed:
    """The record of a study's executed notebooks, kept in its folder.

    A notebook's key is a hash of its source, its parameters, the kit's code, the versions of what computes, the
    names of the study's runs and the keys of the notebooks before it. It is kept where the key is the recorded
    one and every file that it wrote (and itself) is there with the bytes that were recorded.
    """

    def __init__(self, folder: Path, depends_on: Iterable[str]):
        self.folder = folder
        self.record = json.loads(self._file.read_text(encoding="utf-8")) if self._file.exists() else {}
        versions = [platform.python_version(), *(f"{library} {version(library)}" for library in LIBRARIES)]
        self.last = _digest(*versions, _code(), *sorted(depends_on))

    @property
    def _file(self) -> Path:
        return self.folder / RECORD

    def key(self, notebook: Path, parameters: Mapping[str, Any]) -> str:
        """The notebook's key; ask in the order in which notebooks are executed."""
        given = json.dumps(parameters, sort_keys=True)
        self.last = _digest(self.last, notebook.name, _content(notebook), given)
        return self.last

    def holds(self, name: str, key: str) -> bool:
        """Whether an executed notebook and all its files stand as they were written for this key."""
        entry = self.record.get(name, {})
        if entry.get("key") != key:
            return False
        there = {file: self.folder / file for file in entry["files"]}
        return all(path.is_file() and _content(path) == entry["files"][file] for file, path in there.items())

    def written(self) -> dict[str, int]:
        """When each file of the study's folder was last written (ns), to be compared by `add`."""
        paths = [path for path in self.folder.rglob("*") if path.is_file() and path != self._file]
        return {path.relative_to(self.folder).as_posix(): path.stat().st_mtime_ns for path in paths}

    def add(self, name: str, key: str, before: Mapping[str, int]) -> None:
        """Record an execution and the files that it wrote since `before`."""
        changed = [file for file, when in self.written().items() if before.get(file) != when]
        self.record[name] = {"key": key, "files": {file: _content(self.folder / file) for file in sorted(changed)}}
        text = json.dumps(self.record, indent=1) + "\n"
        write_atomic(self._file, lambda p: p.write_text(text, encoding="utf-8"))


def _code() -> str:
    """A hash of the package's modules and templates."""
    paths = sorted(path for kind in ("*.py", "*.html") for path in PACKAGE.rglob(kind))
    return _digest(*(f"{path.relative_to(PACKAGE).as_posix()} {_content(path)}" for path in paths))


def _content(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
