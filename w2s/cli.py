"""The command line: w2s run, status, fetch, zoo."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from w2s import __version__
from w2s.params import HOME, ParameterError, StudyParams, nearest
from w2s.progress import HEADLESS, duration

NOTEBOOKS = HOME / "notebooks"


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 failed, 2 wrong input, 130 interrupted."""
    args = _parser().parse_args(argv)
    try:
        return args.command(args)
    except (ParameterError, ValueError, OSError) as error:
        print(f"w2s: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("w2s: interrupted; finished runs are kept, the same command goes on from there", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="w2s", description="The study kit for weak-to-strong deception.")
    parser.add_argument("--version", action="version", version=f"w2s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="execute the notebooks of a study and write its report")
    status = commands.add_parser("status", help="show which runs of a study are in the cache")
    fetch = commands.add_parser("fetch", help="download the models and datasets of a study, for use without network")
    for command, function in ((run, run_study), (status, show_status), (fetch, fetch_files)):
        command.add_argument("params", type=Path, help="a parameter file, such as params/pocket.yaml")
        command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace a parameter")
        command.add_argument("--output-dir", help="where results go (default: outputs)")
        command.set_defaults(command=function)

    zoo = commands.add_parser("zoo", help="the pocket ladder of small models").add_subparsers(
        required=True, metavar="ACTION"
    )
    show = zoo.add_parser("list", help="sizes, parameters and measured knowledge")
    show.set_defaults(command=list_zoo)
    build = zoo.add_parser("build", help="pretrain sizes anew (about 20 minutes for all on one core)")
    build.add_argument("sizes", nargs="*", help="such as pocket-40; all when none is named")
    build.add_argument("--output-dir", type=Path, help="where the folders go (default: over the shipped ones)")
    build.add_argument("--device", default="auto", help="auto, cpu or cuda")
    build.set_defaults(command=build_zoo)
    return parser


def read_params(args: argparse.Namespace) -> tuple[StudyParams, dict[str, Any]]:
    """The checked parameters of a command, and the values that were given by file or --set."""
    overrides: dict[str, Any] = {}
    for item in args.set:
        key, equals, text = item.partition("=")
        if not equals:
            raise ParameterError(f"--set {item}: write --set key=value")
        try:
            overrides[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ParameterError(f"--set {item}: the value is not readable as YAML") from None
    if args.output_dir:
        overrides["output_dir"] = str(Path(args.output_dir).expanduser().absolute())
    params = StudyParams.load(args.params, **overrides)
    return params, params.model_dump(mode="json", exclude_unset=True)


def declared(notebook: Path) -> list[str]:
    """The names that a notebook's parameters cell sets."""
    from papermill import inspect_notebook

    return list(inspect_notebook(str(notebook)))


def plan(given: dict[str, Any]) -> list[tuple[Path, dict[str, Any]]]:
    """Each notebook with the given parameters that it declares.

    Raises:
        ParameterError: no notebooks, or a parameter that none of them declares.
    """
    wanted = [f"{number:02}_*" for number in range(1, 6)] + [f"*_{name}" for name in given.get("extensions", [])]
    paths = sorted(path for pattern in wanted for path in NOTEBOOKS.glob(f"{pattern}.ipynb"))
    notebooks = {path: declared(path) for path in paths}
    if not notebooks:
        raise ParameterError(f"{NOTEBOOKS}: no notebooks there; run w2s from a checkout of the kit")
    known = {name for names in notebooks.values() for name in names} | {"extensions"}
    for key, value in given.items():
        if key not in known:
            raise ParameterError(f"parameter {key!r} = {value!r} is known to no notebook; {nearest(key, known)}")
    return [(path, {k: v for k, v in given.items() if k in names}) for path, names in notebooks.items()]


def run_study(args: argparse.Namespace) -> int:
    """Execute every notebook in order, then write report.html."""
    params, given = read_params(args)
    steps = plan(given)

    import papermill
    from papermill.exceptions import PapermillExecutionError

    from w2s import fanout
    from w2s.study import Study

    # Opening the study here finds a missing model or file before any notebook runs.
    study = Study.open(params)
    fanout.announce(list(study.all_runs()), study.root, params.workers, params.scheduler)
    folder = params.root / params.study
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[HEADLESS] = "1"
    started = time.monotonic()
    for path, parameters in steps:
        print(f"{duration(time.monotonic() - started):>6}  {path.name}", flush=True)
        try:
            papermill.execute_notebook(
                str(path),
                str(folder / path.name),
                parameters,
                kernel_name="python3",
                cwd=str(path.parent),
                progress_bar=False,
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
                extra_arguments=["--IPKernelApp.log_level=ERROR"],  # no notice about loopback TCP each time
            )
        except PapermillExecutionError as error:
            cause = " ".join(error.evalue.split())
            print(f"w2s: {path.name}, cell {error.cell_index}: {error.ename}: {cause}", file=sys.stderr)
            print(f"w2s: see {folder / path.name}; finished runs are kept", file=sys.stderr)
            return 1

    from w2s.report import write_report

    report = write_report(params)
    print(f"{duration(time.monotonic() - started):>6}  done: {report}")
    return 0


def show_status(args: argparse.Namespace) -> int:
    """Print each run of a study and whether it is in the cache."""
    params, given = read_params(args)
    plan(given)

    from w2s import runs
    from w2s.study import Study

    study = Study.open(params)
    wanted = study.all_runs()
    done = [runs.is_done(spec, study.root) for spec in wanted]
    for spec, there in zip(wanted, done, strict=True):
        print("done   " if there else "to do  ", spec.name)
    print(f"{sum(done)} of {len(done)} runs are in {study.root / 'runs'}")
    return 0


def fetch_files(args: argparse.Namespace) -> int:
    """Download what a study needs from the hub and is not here yet."""
    params, _ = read_params(args)

    from w2s.fetch import fetch

    fetch(params)
    return 0


def list_zoo(args: argparse.Namespace) -> int:
    """Print the ladder: size, parameters, and the share of test pairs that its language models judge rightly."""
    from w2s import models, zoo
    from w2s.world import World

    pairs = World().pairs("test", StudyParams.model_fields["n_test"].default)
    print(f"{'size':<12}{'parameters':>12}{'knowledge':>11}   (of {len(pairs)} test pairs, before any fine-tuning)")
    for name in zoo.ladder():
        print(f"{name:<12}{models.n_parameters(name):>12,}{zoo.judge(name, pairs)['correct'].mean():>11.3f}")
    return 0


def build_zoo(args: argparse.Namespace) -> int:
    """Pretrain the named sizes, or all."""
    from w2s import zoo

    zoo.build(args.sizes or list(zoo.SIZES), args.output_dir or zoo.LADDER, device=args.device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
