"""The packaging files agree with one another, with the code, and with what the Makefile does."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RUNTIME = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = [Requirement(line) for lines in PROJECT["optional-dependencies"].values() for line in lines]
NOTEBOOKS = ["01_data_conflict", "02_weak_training", "03_strong_training", "04_deception_analysis", "05_bootstrapping"]
TOP_LEVEL = {
    *("notebooks", "w2s", "params", "outputs", "tests", "docs", ".ci"),
    *("environment.yml", "pyproject.toml", "constraints.txt", "Makefile"),
    *("README.md", "LICENSE", "CITATION.cff", ".gitignore"),
}


def pins() -> dict[str, Version]:
    """Read constraints.txt as canonical name -> exact version; any other form of line is a failure."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    versions = {}
    for line in filter(None, (line.partition("#")[0].strip() for line in lines)):
        name, version = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9A-Za-z.]+)", line).groups()
        assert canonicalize_name(name) not in versions, f"constraints.txt pins {name} twice"
        versions[canonicalize_name(name)] = Version(version)
    return versions


def git(*arguments: str) -> str:
    """Run git on the checkout; skip the test where there is none, as in an unpacked archive."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout


def tracked() -> list[str]:
    files = git("ls-files", "-z").split("\0")[:-1]
    if not files:
        pytest.skip("nothing is in git yet")
    return files


def imported_modules(folder: Path) -> dict[str, str]:
    """Map each top-level module that the files of a folder import, at any depth of code, to one such file."""
    modules = {}
    for path in sorted(folder.glob("**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            modules |= {name.partition(".")[0]: path.name for name in names}
    return modules


def pulled_by(requirements: list[Requirement]) -> set[str]:
    """Follow installed metadata from the requirements to every package they bring in on this platform."""
    todo = [(canonicalize_name(each.name), extra) for each in requirements for extra in {"", *each.extras}]
    seen = set()
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen or name.startswith(("nvidia-", "cuda-", "triton")):
            continue  # torch's CUDA builds pin their own libraries
        seen.add((name, extra))
        for line in importlib.metadata.requires(name) or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                todo += [(canonicalize_name(needed.name), more) for more in {"", *needed.extras}]
    return {name for name, _ in seen}


@pytest.mark.parametrize("requirement", RUNTIME + EXTRAS, ids=lambda requirement: requirement.name)
def test_each_dependency_is_pinned_inside_its_range(requirement):
    version = pins().get(canonicalize_name(requirement.name))
    assert version is not None, f"constraints.txt does not pin {requirement.name}"
    assert version in requirement.specifier, f"{requirement.name}=={version} is outside {requirement.specifier}"


def test_torch_is_pinned_without_a_build_tag():
    # 2.13.0 admits 2.13.0+cpu where pip is offered it; the tag itself would rule out macOS and Windows.
    assert str(pins()["torch"]) == "2.13.0"


def test_constraints_pin_everything_that_an_install_pulls():
    missing = pulled_by(RUNTIME + EXTRAS) - set(pins())
    assert not missing, f"constraints.txt does not pin {sorted(missing)}"


def test_environment_yml_uses_the_constraints_and_a_supported_python():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    pip_lines = next(each["pip"] for each in environment["dependencies"] if isinstance(each, dict))
    assert pip_lines == ["-c constraints.txt", "-e .[test]"]
    python = next(each for each in environment["dependencies"] if str(each).startswith("python="))
    assert Version(python.partition("=")[2]) in SpecifierSet(PROJECT["requires-python"])
    assert environment["channels"][0] == "conda-forge"
    assert "pip" in environment["dependencies"]


@pytest.mark.parametrize(("folder", "declared"), [("w2s", RUNTIME), ("tests", RUNTIME + EXTRAS)])
def test_every_import_is_a_declared_dependency(folder, declared):
    names = {canonicalize_name(requirement.name) for requirement in declared}
    providers = importlib.metadata.packages_distributions()
    own = {"w2s", "tests", *(path.stem for path in (ROOT / "tests").rglob("*.py"))}
    for module, where in imported_modules(ROOT / folder).items():
        if module in sys.stdlib_module_names or module in own:
            continue
        found = {canonicalize_name(name) for name in providers.get(module, [])}
        assert found & names, f"{where} imports {module}, which pyproject.toml does not declare"


def test_the_files_that_ship_with_the_package_exist():
    assert (ROOT / PROJECT["readme"]).is_file()
    assert "Copyright (c) 2026 the w2s authors" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["scripts"] == {"w2s": "w2s.app.cli:main"}


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    assert citation["references"] == [citation["preferred-citation"]]
    paper = citation["preferred-citation"]
    families = [author["family-names"] for author in paper["authors"]]
    assert families == ["Yang", "Shen", "Shen", "Yao", "Liu", "Gong", "Lin", "Wen"]
    assert {"type": "other", "value": "arXiv:2406.11431"} in paper["identifiers"]


def test_the_top_level_in_git_holds_only_what_is_agreed():
    assert {name.partition("/")[0] for name in tracked()} <= TOP_LEVEL


def test_outputs_in_git_holds_its_readme_alone():
    assert [name for name in tracked() if name.startswith("outputs/")] == ["outputs/README.md"]


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_notebooks_are_committed_clean_with_a_tagged_parameters_cell(stem):
    # The index is read, not the file: who steps through a notebook and saves it breaks no test.
    path = f"notebooks/{stem}.ipynb"
    tracked_here = (ROOT / ".git").exists() and git("ls-files", path)
    notebook = json.loads(git("show", f":{path}") if tracked_here else (ROOT / path).read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    tagged = [number for number, cell in enumerate(code) if "parameters" in cell["metadata"].get("tags", [])]
    assert tagged == [0], "exactly one cell, the first with code, is tagged parameters"
    # python3 is the kernel of whichever environment runs it: .venv, conda or plain pip.
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


needs_make = pytest.mark.skipif(shutil.which("make") is None or os.name == "nt", reason="needs make and a POSIX shell")

# Stands in for Python: says its version, and makes a .venv whose Python writes down what it was asked to do.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
    --version) echo "Python $FAKE_VERSION" ;;
    -c*) exec "$REAL_PYTHON" -c "import sys; sys.version_info = ($(echo "$FAKE_VERSION" | tr . ,)); $2" ;;
    "-m venv --clear .venv") rm -rf .venv && mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    "-m pip index"*) echo "Available versions: $FAKE_TORCH" ;;
    *) echo "$*" >> log && exit "${FAKE_EXIT:-0}" ;;
esac
"""


class Checkout:
    """A copy of the Makefile and of what it depends on, in a path with a space, with a stand-in for Python."""

    def __init__(self, folder: Path):
        self.folder = folder / "my kit"
        self.folder.mkdir()
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.folder / name)
        self.python = self.folder / "fake python"
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)

    def make(self, *arguments: str, version: str = "3.11.2", torch: str = "2.13.0+cpu", pip_exit: int = 0):
        """Run make; the variables of the make that runs these tests are kept out."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("MAKE") and key != "MFLAGS"}
        fake = {"FAKE_VERSION": version, "FAKE_TORCH": torch, "FAKE_EXIT": str(pip_exit), "REAL_PYTHON": sys.executable}
        command = ["make", *arguments, f"PYTHON={self.python}"]
        return subprocess.run(command, cwd=self.folder, env=clean | fake, capture_output=True, text=True)

    def log(self) -> list[str]:
        """Return what the .venv's Python was asked to do since the last call."""
        path = self.folder / "log"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


INSTALL = "-m pip install -e .[test] -c constraints.txt"


@needs_make
def test_make_alone_lists_every_target(checkout):
    done = checkout.make()
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^  ([a-z]+) ", done.stdout, re.MULTILINE) == ["help", "study", "test", "lab", "lint", "clean"]
    assert checkout.log() == []


@needs_make
@pytest.mark.parametrize(
    ("target", "command"),
    [
        (["study"], '.venv/bin/w2s run "params/pocket.yaml"'),
        (["study", "STUDY=params/hh_offline.yaml"], '.venv/bin/w2s run "params/hh_offline.yaml"'),
        (["test"], ".venv/bin/python -m pytest"),
        (["lab"], "-m jupyterlab"),
        (["lint"], ".venv/bin/python -m ruff check ."),
        (["clean"], "rm -rf .venv"),
    ],
)
def test_make_targets_run_their_commands(checkout, target, command):
    done = checkout.make("--dry-run", *target)
    assert done.returncode == 0, done.stderr
    assert command in done.stdout
    assert ("pip install" in done.stdout) == (target != ["clean"])


@needs_make
def test_a_second_make_installs_only_after_a_change_of_the_pins(checkout):
    assert checkout.make("test").returncode == 0
    assert checkout.log() == [INSTALL, "-m pytest"]
    assert checkout.make("test").returncode == 0
    assert checkout.log() == ["-m pytest"]
    stamp = (checkout.folder / ".venv/.installed").stat().st_mtime
    os.utime(checkout.folder / "constraints.txt", (stamp + 5, stamp + 5))
    assert checkout.make("lint").returncode == 0
    assert checkout.log() == [INSTALL, "-m ruff check ."]


@needs_make
def test_a_failed_install_stops_make_and_is_made_again(checkout):
    assert checkout.make("test", pip_exit=1).returncode != 0
    assert checkout.log() == [INSTALL]
    (checkout.folder / ".venv/half").touch()
    assert checkout.make("test").returncode == 0
    assert checkout.log() == [INSTALL, "-m pytest"]
    assert not (checkout.folder / ".venv/half").exists()


@needs_make
def test_a_failed_test_run_fails_make(checkout):
    assert checkout.make(".venv/.installed").returncode == 0
    assert checkout.make("test", pip_exit=1).returncode != 0


@needs_make
@pytest.mark.parametrize("version", ["3.10.9", "3.15.0"])
def test_an_unfit_python_is_refused_in_one_line_before_anything_is_made(checkout, version):
    done = checkout.make("study", version=version)
    assert done.returncode != 0
    message = done.stderr.splitlines()[0]
    assert f"needs Python 3.11 to 3.14, and {checkout.python} is Python {version}; name another" in message
    assert not (checkout.folder / ".venv").exists()


@needs_make
def test_a_missing_python_is_named(checkout):
    checkout.python.unlink()
    done = checkout.make("study")
    assert done.returncode != 0
    assert f"{checkout.python} is missing; name another" in done.stderr.splitlines()[0]


@needs_make
@pytest.mark.parametrize(
    ("torch", "noted"), [("2.13.0+cpu, 2.13.0", False), ("2.13.0", sys.platform.startswith("linux"))]
)
def test_make_says_beforehand_when_torch_would_bring_cuda(checkout, torch, noted):
    done = checkout.make("test", torch=torch)
    assert done.returncode == 0, done.stderr
    assert ("no CPU build of torch" in done.stdout) == noted


def test_the_python_range_is_the_same_in_make_and_pyproject():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    low, high = re.search(r"\((\d, \d+)\) <= sys\.version_info.* <= \((\d, \d+)\)", makefile).groups()
    fit = SpecifierSet(PROJECT["requires-python"])
    named = [tuple(map(int, each.split(", "))) for each in (low, high)]
    allowed = [(3, minor) for minor in range(30) if f"3.{minor}" in fit]
    assert named == [allowed[0], allowed[-1]]


@needs_make
def test_the_ci_script_gives_the_status_of_make_test(checkout):
    (checkout.folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", checkout.folder / ".ci/run")
    for status in (0, 3):
        (checkout.folder / "Makefile").write_text(f"test:\n\t@echo ran; exit {status}\n")
        done = subprocess.run(["bash", checkout.folder / ".ci/run"], capture_output=True, text=True)
        assert "ran" in done.stdout
        assert (done.returncode == 0) == (status == 0)
