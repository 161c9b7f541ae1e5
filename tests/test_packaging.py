"""The packaging files agree with one another, with the code, and with what the Makefile does."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
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
TOP_LEVEL = {
    "ARCHITECTURE.md",
    *("notebooks", "w2s", "params", "outputs", "tests", "docs", ".ci", "environment.yml", "pyproject.toml"),
    *("constraints.txt", "Makefile", "README.md", "LICENSE", "CITATION.cff", ".gitignore"),
}


def pins() -> dict[str, Version]:
    """Read constraints.txt as canonical name -> exact version; any other form of line is a failure."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines())
    pairs = [re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9A-Za-z.]+)", line).groups() for line in lines if line]
    versions = {canonicalize_name(name): Version(version) for name, version in pairs}
    assert len(versions) == len(pairs), "constraints.txt pins a package twice"
    return versions


def tracked() -> list[str]:
    """The paths in git; skips the test where there is no checkout, as in an unpacked archive."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True)
    return listed.stdout.split("\0")[:-1]


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


def test_constraints_pin_everything_that_an_install_pulls_inside_its_range():
    versions = pins()
    for requirement in RUNTIME + EXTRAS:
        version = versions[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, f"{requirement.name}=={version} is outside {requirement.specifier}"
    missing = pulled_by(RUNTIME + EXTRAS) - set(versions)
    assert not missing, f"constraints.txt does not pin {sorted(missing)}"
    # 2.13.0 admits 2.13.0+cpu where pip is offered it; the tag itself would rule out macOS and Windows.
    assert str(versions["torch"]) == "2.13.0"


def test_environment_yml_uses_the_constraints_and_a_supported_python():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    pip_lines = next(each["pip"] for each in environment["dependencies"] if isinstance(each, dict))
    assert pip_lines == ["-c constraints.txt", "-e .[test]"]
    python = next(each for each in environment["dependencies"] if str(each).startswith("python="))
    assert Version(python.partition("=")[2]) in SpecifierSet(PROJECT["requires-python"])
    assert environment["channels"][0] == "conda-forge" and "pip" in environment["dependencies"]


@pytest.mark.parametrize(("folder", "declared"), [("w2s", RUNTIME), ("tests", RUNTIME + EXTRAS)])
def test_every_import_is_a_declared_dependency(folder, declared):
    names = {canonicalize_name(requirement.name) for requirement in declared}
    providers = importlib.metadata.packages_distributions()
    own = {"w2s", "tests", *sys.stdlib_module_names, *(path.stem for path in (ROOT / "tests").rglob("*.py"))}
    for module, where in imported_modules(ROOT / folder).items():
        packages = {canonicalize_name(name) for name in providers.get(module, [])}
        assert module in own or packages & names, f"{where} imports {module}, which pyproject.toml does not declare"


def test_license_script_and_citation():
    assert (ROOT / PROJECT["readme"]).is_file()
    assert "Copyright (c) 2026 the w2s authors" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["scripts"] == {"w2s": "w2s.app.cli:main"}
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper = citation["preferred-citation"]
    assert citation["version"] == PROJECT["version"] and citation["references"] == [paper]
    families = [author["family-names"] for author in paper["authors"]]
    assert families == ["Yang", "Shen", "Shen", "Yao", "Liu", "Gong", "Lin", "Wen"]
    assert {"type": "other", "value": "arXiv:2406.11431"} in paper["identifiers"]


def test_git_holds_only_what_is_agreed():
    paths = tracked()
    assert {name.partition("/")[0] for name in paths} <= TOP_LEVEL
    assert [name for name in paths if name.startswith("outputs/")] == ["outputs/README.md"]


def test_no_text_names_a_folder_of_the_machine_that_it_was_written_on():
    texts = [ROOT / name for name in tracked() if name.endswith((".py", ".yaml", ".yml", ".md", ".ipynb", ".toml"))]
    wrong = [path.name for path in texts if re.search(r"(?<![\w.])/(home|Users|root)/\w", path.read_text("utf-8"))]
    assert wrong == []


def expanded(word: str) -> list[str]:
    """A word with {a,b} in it stands for one word each."""
    parts = re.fullmatch(r"(.*?)\{([^}]*)\}(.*)", word)
    return (
        [word] if parts is None else [w for each in parts[2].split(",") for w in expanded(parts[1] + each + parts[3])]
    )


def test_the_readme_names_every_parameter_file():
    """Or the file that names it under `also`."""
    written = re.findall(r"[\w{},]+\.yaml", (ROOT / "README.md").read_text(encoding="utf-8"))
    named = {name for word in written for name in expanded(word)}
    files = {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / "params").glob("*.yaml")}
    assert set(files) <= named | {other for name in named & set(files) for other in files[name].get("also", [])}


@pytest.mark.slow
def test_a_wheel_holds_all_modules_and_the_files_that_ship(tmp_path):
    shutil.copytree(ROOT / "w2s", tmp_path / "kit" / "w2s", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "kit" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path]
    subprocess.run([*command, tmp_path / "kit"], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("w2s/")}
    kit = tmp_path / "kit"
    assert inside == {path.relative_to(kit).as_posix() for path in (kit / "w2s").rglob("*") if path.is_file()}
    assert {f"w2s/{part}" for part in ("templates/report.html", "frozen/dpo.json", "app/cli.py")} <= inside


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
INSTALL = "-m pip install -e .[test] -c constraints.txt"


class Checkout:
    """A copy of the Makefile and of what it depends on, in a path with a space, with a stand-in for Python."""

    def __init__(self, folder: Path):
        self.folder, self.python = folder / "my kit", folder / "my kit" / "fake python"
        self.folder.mkdir()
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.folder / name)
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)

    def make(self, *arguments: str, version: str = "3.11.2", torch: str = "2.13.0+cpu", pip_exit: int = 0):
        """Run make; the variables of the make that runs these tests are kept out."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("MAKE") and key != "MFLAGS"}
        fake = {"FAKE_VERSION": version, "FAKE_TORCH": torch, "FAKE_EXIT": str(pip_exit), "REAL_PYTHON": sys.executable}
        command = ["make", *arguments, f"PYTHON={self.python}"]
        return subprocess.run(command, cwd=self.folder, env=clean | fake, capture_output=True, text=True)

    def log(self) -> list[str]:
        """What the .venv's Python was asked to do since the last call; all pytest runs as `-m pytest`."""
        path = self.folder / "log"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return ["-m pytest" if line.startswith("-m pytest") else line for line in lines]


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


TARGETS = {
    "study": '.venv/bin/w2s run "params/pocket.yaml"',
    "study STUDY=params/hh_offline.yaml": '.venv/bin/w2s run "params/hh_offline.yaml"',
    "test": '.venv/bin/python -m pytest -m "not slow"', "test-slow": ".venv/bin/python -m pytest -m slow",
    "lab": "-m jupyterlab", "book": '.venv/bin/python docs/book.py "params/pocket.yaml"',
    "lint": ".venv/bin/python -m ruff check .", "clean": "rm -rf .venv",
}  # fmt: skip


@needs_make
def test_make_alone_lists_every_target_and_each_runs_its_command(checkout):
    done = checkout.make()
    assert done.returncode == 0, done.stderr
    targets = re.findall(r"^  ([a-z-]+) ", done.stdout, re.MULTILINE)
    assert set(targets) == {"help", *(target.split()[0] for target in TARGETS)} and checkout.log() == []
    for target, command in TARGETS.items():
        done = checkout.make("--dry-run", *target.split())
        assert done.returncode == 0 and command in done.stdout, done.stderr
        assert ("pip install" in done.stdout) == (target != "clean")


@needs_make
def test_make_installs_once_and_again_after_a_failure_or_a_change_of_the_pins(checkout):
    assert checkout.make("test", pip_exit=1).returncode != 0
    assert checkout.log() == [INSTALL]
    (checkout.folder / ".venv/half").touch()
    assert checkout.make("test").returncode == 0
    assert checkout.log() == [INSTALL, "-m pytest"]
    assert not (checkout.folder / ".venv/half").exists()
    assert checkout.make("test", pip_exit=1).returncode != 0  # the tests failed
    assert checkout.log() == ["-m pytest"]
    stamp = (checkout.folder / ".venv/.installed").stat().st_mtime
    os.utime(checkout.folder / "constraints.txt", (stamp + 5, stamp + 5))
    assert checkout.make("lint").returncode == 0
    assert checkout.log() == [INSTALL, "-m ruff check ."]


@needs_make
@pytest.mark.parametrize("version", ["3.10.9", "3.15.0", "missing"])
def test_an_unfit_python_is_refused_in_one_line_before_anything_is_made(checkout, version):
    if version == "missing":
        checkout.python.unlink()
    done = checkout.make("study", version=version)
    assert done.returncode != 0
    what = version if version == "missing" else f"Python {version}"
    message = f"needs Python 3.11 to 3.14, and {checkout.python} is {what}; name another"
    assert message in done.stderr.splitlines()[0] and not (checkout.folder / ".venv").exists()


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
    ends = re.search(r"\((\d, \d+)\) <= sys\.version_info.* <= \((\d, \d+)\)", makefile).groups()
    allowed = [f"3, {minor}" for minor in range(30) if f"3.{minor}" in SpecifierSet(PROJECT["requires-python"])]
    assert ends == (allowed[0], allowed[-1])


@needs_make
def test_the_ci_script_gives_the_status_of_make_test(checkout):
    (checkout.folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", checkout.folder / ".ci/run")
    for status in (0, 3):
        (checkout.folder / "Makefile").write_text(f"test test-slow:\n\t@echo ran; exit {status}\n")
        done = subprocess.run(["bash", checkout.folder / ".ci/run"], capture_output=True, text=True)
        assert "ran" in done.stdout and (done.returncode == 0) == (status == 0)
