"""The command line: w2s run, status, fetch, freeze, zoo, bench."""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from w2s import __version__
from w2s.params import HOME, ParameterError, StudyParams, nearest
from w2s.progress import HEADLESS, duration

if TYPE_CHECKING:
    from w2s.study import Study

NOTEBOOKS = HOME / "notebooks"
BENCHMARK = HOME / "tests" / "benchmarks" / "bench.py"
TRAINING = ("01", "02", "03")  # the notebooks that a study of shipped predictions goes without


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
    run.add_argument("--again", action="store_true", help="execute also those that nothing has changed for")
    status = commands.add_parser("status", help="show which runs of a study are in the cache")
    fetch = commands.add_parser("fetch", help="download the models and datasets of a study, for use without network")
    freeze = commands.add_parser("freeze", help="pack the predictions of finished studies, to ship with the kit")
    freeze.add_argument("--to", type=Path, help="folder for the files (default: over the shipped ones)")
    functions = {run: run_study, status: show_status, fetch: fetch_files, freeze: freeze_study}
    for command, function in functions.items():
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

    bench = commands.add_parser("bench", help="time and memory beside TRL and a plain research loop, on one core")
    bench.add_argument(
        "only", nargs="*", help="methods, models, contexts such as dpo 4x128 (default: all, about an hour)"
    )
    bench.add_argument("--to", default="outputs/bench", help="folder for table and figure (default: outputs/bench)")
    bench.add_argument("--repetitions", default="3", help="timed ones of each contender (default: 3)")
    bench.add_argument("--quick", action="store_true", help="tiny sizes, one repetition: does it run")
    bench.add_argument("--large", action="store_true", help="also 12 layers x 768 with GPT-2's vocabulary size")
    bench.add_argument("--write-docs", action="store_true", help="write docs/performance.md as well")
    bench.set_defaults(command=run_benchmark)
    return parser


def read_params(args: argparse.Namespace, path: Path) -> tuple[StudyParams, dict[str, Any]]:
    """The checked parameters of a command's file, and the values that were given by it or by --set."""
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
    params = StudyParams.load(path, **overrides)
    return params, params.model_dump(mode="json", exclude_unset=True)


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import without looking for garbage, and without the grammar that jsonschema has for addresses, unused here.

    The first takes a quarter of the time of importing PyTorch and transformers, the second half of papermill's.
    """
    sys.modules.setdefault("rfc3987_syntax", None)
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def declared(notebook: Path) -> list[str]:
    """The names that a notebook's parameters cell sets."""
    with quick_imports():
        from papermill import inspect_notebook

    return list(inspect_notebook(str(notebook)))


def plan(given: dict[str, Any]) -> list[tuple[Path, dict[str, Any]]]:
    """Each notebook that is to be executed, with the given parameters that it declares.

    Raises:
        ParameterError: no notebooks, or a parameter that none of them declares.
    """
    wanted = [f"{number:02}_*" for number in range(1, 6)] + [f"*_{name}" for name in given.get("extensions", [])]
    paths = sorted(path for pattern in wanted for path in NOTEBOOKS.glob(f"{pattern}.ipynb"))
    notebooks = {path: declared(path) for path in paths}
    if not notebooks:
        raise ParameterError(f"{NOTEBOOKS}: no notebooks there; run w2s from a checkout of the kit")
    known = {name for names in notebooks.values() for name in names} | {"extensions", "also"}
    for key, value in given.items():
        if key not in known:
            raise ParameterError(f"parameter {key!r} = {value!r} is known to no notebook; {nearest(key, known)}")
    chosen = {path: n for path, n in notebooks.items() if path.stem[:2] not in TRAINING or not given.get("frozen")}
    return [(path, {k: v for k, v in given.items() if k in names}) for path, names in chosen.items()]


def run_study(args: argparse.Namespace) -> int:
    """Execute the notebooks of a study, and of those that its file names under `also`, and write their reports."""
    studies = [read_params(args, path) for path in with_others(args)]
    folders = [params.study for params, _ in studies]
    if len(set(folders)) < len(folders):
        raise ParameterError(f"study = {folders[0]!r}: also names a study of that name; each needs its own folder")
    for _, given in studies:
        plan(given)
    for params, given in studies:
        status = execute(params, given, args.again)
        if status:
            return status
    return 0


def with_others(args: argparse.Namespace) -> list[Path]:
    """The parameter file of a command and those that it names under `also`, which lie beside it.

    Raises:
        ParameterError: one of them names others in turn.
    """
    others = [args.params.parent / name for name in read_params(args, args.params)[0].also]
    for path in others:
        if read_params(args, path)[0].also:
            raise ParameterError(f"{path}: it has a list `also` itself; name those files in {args.params}")
    return [args.params, *others]


def execute(params: StudyParams, given: dict[str, Any], again: bool = False) -> int:
    """Execute every notebook of one study whose results do not stand already, then write report.html.

    Returns 0, or 1 when a notebook failed.
    """
    with quick_imports():
        import papermill
        from papermill.exceptions import PapermillExecutionError

        from w2s import fanout
        from w2s.executed import Executed
        from w2s.study import Study

        # Opening the study here finds a missing model or file before any notebook runs.
        study = Study.open(params)
        wanted = study.all_runs()
        how = study.root, params.workers, params.scheduler
        todo = [] if params.frozen else fanout.checked(list(wanted), *how)
    folder = params.root / params.study
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    if params.frozen:
        without_training(study)
    elif todo:  # each model is tried, which takes its time: beside notebook 01, which trains nothing
        forecast = ThreadPool(1).apply_async(fanout.announce, (todo, len(wanted), *how))
    else:
        fanout.announce(todo, len(wanted), *how)
    record = Executed(folder, [spec.name for spec in wanted])
    os.environ[HEADLESS] = "1"
    for path, parameters in plan(given):
        key = record.key(path, parameters)
        print(f"{duration(time.monotonic() - started):>6}  {path.name}", end="", flush=True)
        if not (todo or again) and record.holds(path.name, key):
            print(": as before, nothing it depends on has changed", flush=True)
            continue
        print(flush=True)
        before = record.written()
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
        record.add(path.name, key, before)
        if todo:
            forecast.get()  # before anything is trained; raises what it raised

    from w2s.report import write_report

    report = write_report(params)
    print(f"{duration(time.monotonic() - started):>6}  done: {report}")
    return 0


def without_training(study: Study) -> None:
    """Write what notebooks 01 and 03 would have written, of a study of shipped predictions."""
    from w2s import figures, files

    files.write_table(study.folder / "tables" / "predictions.parquet", study.train(study.direct_runs()))
    figures.save_table(study.data.audit, study.folder, "01_audit")


def show_status(args: argparse.Namespace) -> int:
    """Print each run of a study and whether it is in the cache."""
    params, given = read_params(args, args.params)
    plan(given)

    from w2s import store
    from w2s.study import Study

    study = Study.open(params)
    wanted = study.all_runs()
    done = [store.is_done(spec, study.root) for spec in wanted]
    for spec, there in zip(wanted, done, strict=True):
        print("done   " if there else "to do  ", spec.name)
    print(f"{sum(done)} of {len(done)} runs are in {study.root / 'runs'}")
    return 0


def freeze_study(args: argparse.Namespace) -> int:
    """Pack what the runs of a study, and of those under `also`, predict."""
    from w2s import frozen
    from w2s.study import Study

    for path in with_others(args):
        study = Study.open(read_params(args, path)[0])
        packed = frozen.pack(list(study.all_runs()), study.root, args.to or frozen.FOLDER)
        print(f"{packed}: {packed.stat().st_size / 1e6:.1f} MB")
    return 0


def fetch_files(args: argparse.Namespace) -> int:
    """Download what a study needs from the hub and is not here yet."""
    params, _ = read_params(args, args.params)

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


def run_benchmark(args: argparse.Namespace) -> int:
    """Run tests/benchmarks/bench.py, which a checkout of the kit has."""
    if not BENCHMARK.is_file():
        raise ParameterError(f"{BENCHMARK}: no benchmark there; run w2s bench from a checkout of the kit")
    switches = [f"--{name}" for name in ("quick", "large", "write-docs") if getattr(args, name.replace("-", "_"))]
    options = ["--to", args.to, "--repetitions", args.repetitions, *switches]
    return subprocess.call([sys.executable, str(BENCHMARK), *args.only, *options])


if __name__ == "__main__":
    sys.exit(main())
