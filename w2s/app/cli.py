"""The command line: w2s run, status, compare, fetch, freeze, handout, grade, zoo, bench."""

from __future__ import annotations

import argparse
import errno
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from w2s import __version__
from w2s.app.headless import execute, log_error, plan
from w2s.files import located, read_yaml, spell_out, write_atomic
from w2s.params import HOME, ParameterError, StudyParams, nearest

FULL = (errno.ENOSPC, errno.EDQUOT)  # fails what was asked rightly
REMEDIES = {errno.ENOSPC: "; free some, or set output_dir to another disk", errno.EDQUOT: "; set output_dir elsewhere"}
REMEDIES |= dict.fromkeys((errno.EACCES, errno.EROFS, errno.EPERM), "; set output_dir to a folder that you may write")
REMEDIES |= {errno.ENOTDIR: "; a file is where a folder should be: name another", errno.EISDIR: "; name a file"}
BENCHMARK = HOME / "tests" / "benchmarks" / "bench.py"


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 failed, 2 wrong input, 130 interrupted."""
    spell_out()
    parser = _parser()
    args, args.rest = parser.parse_known_args(argv)
    if args.rest and args.command is not run_benchmark:
        parser.error(f"unrecognized arguments: {' '.join(args.rest)}")
    try:
        return args.command(args) or 0
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"w2s: {where}{(error.strerror or str(error)).lower()}{REMEDIES.get(error.errno, '')}", file=sys.stderr)
        return 1 if error.errno in FULL else 2
    except ValueError as error:  # ParameterError among them
        print(f"w2s: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Exception as error:
        log = log_error(located(getattr(args, "output_dir", None) or "outputs"))
        print(f"w2s: {type(error).__name__}: {' '.join(str(error).split())}; see {log}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("w2s: interrupted; finished runs are kept, the same command goes on from there", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="w2s", description="The study kit for weak-to-strong deception.")
    parser.add_argument("--version", action="version", version=f"w2s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="execute the notebooks of a study and write its report")
    run.add_argument("--again", action="store_true", help="execute also those that nothing has changed for")
    run.add_argument("--grid", action="store_true", help="one study for each value of --set KEY=A,B,...; compares them")
    status = commands.add_parser("status", help="show which runs of a study are in the cache")
    fetch = commands.add_parser("fetch", help="download the models and datasets of a study, for use without network")
    freeze = commands.add_parser("freeze", help="pack the predictions of finished studies, to ship with the kit")
    freeze.add_argument("--to", type=Path, help="folder for the files (default: over the shipped ones)")
    for command, function in {run: run_study, status: show_status, fetch: fetch_files, freeze: freeze_study}.items():
        command.set_defaults(command=function)
        command.add_argument("params", type=Path, help="a parameter file, such as params/pocket.yaml")
        command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace a parameter")
        command.add_argument("--output-dir", help="where results go (default: outputs)")

    compare = commands.add_parser("compare", help="finished studies side by side: claims, accuracies, Scores")
    compare.add_argument("studies", nargs="+", metavar="STUDY", help="names of folders under outputs/")
    compare.add_argument("--output-dir", default="outputs", help="where these lie, and the page goes")
    compare.set_defaults(command=compare_studies)
    handout = commands.add_parser("handout", help="write the notebooks for students, without solutions")
    handout.add_argument("--to", type=Path, default=Path("handout"), help="folder for them (default: %(default)s)")
    handout.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a parameter for every one")
    handout.add_argument("--force", action="store_true", help="write over the notebooks in a folder that is not empty")
    handout.set_defaults(command=hand_out)
    grade = commands.add_parser("grade", help="a CSV table of students and exercises, from what they handed in")
    grade.add_argument("folder", type=Path, help="it has a sub-folder, or a notebook or answers file, for each student")
    grade.add_argument("--to", type=Path, help="file for the table (default: print it)")
    grade.add_argument("--rerun", action="store_true", help="execute the notebooks and count what the checks say then; "
                       "this RUNS THE STUDENTS' CODE with your rights (without it, nothing is executed)")  # fmt: skip
    grade.add_argument("--output-dir", type=Path, help="where reruns find and leave runs (default: FOLDER/.rerun)")
    grade.add_argument("--timeout", type=float, default=1800, help="seconds for a cell (default: %(default)s)")
    grade.set_defaults(command=grade_answers)

    zoo = commands.add_parser("zoo", help="the pocket ladder of small models")
    actions = zoo.add_subparsers(required=True, metavar="ACTION")
    actions.add_parser("list", help="sizes, parameters and measured knowledge").set_defaults(command=list_zoo)
    build = actions.add_parser("build", help="pretrain sizes anew (about half an hour for all on two cores)")
    build.add_argument("sizes", nargs="*", help="such as pocket-40a; all when none is named")
    build.add_argument("--output-dir", type=Path, help="where the folders go (default: over the shipped ones)")
    build.add_argument("--device", default="auto", help="auto, cpu or cuda")
    help_ = "sizes at once, each on one core (default: 1)"
    build.add_argument("--workers", type=int, choices=range(1, 65), metavar="N", default=1, help=help_)
    build.set_defaults(command=build_zoo)

    bench = commands.add_parser("bench", help="time and memory beside TRL and a research loop", add_help=False)
    bench.set_defaults(command=run_benchmark)  # its options, --help among them, are those of bench.py
    return parser


def read_overrides(items: list[str]) -> dict[str, Any]:
    """The values of `--set key=value`, read as YAML, by key."""
    overrides: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals:
            raise ParameterError(f"--set {item}: write --set key=value")
        if key in overrides:
            raise ParameterError(f"--set {item}: {key} is given twice; leave one")
        try:
            overrides[key] = read_yaml(text)
        except ValueError as error:
            raise ParameterError(f"--set {item}: the value is not readable as YAML ({error})") from None
    return overrides


def read_params(path: Path, items: list[str], output_dir: str | None) -> StudyParams:
    """The parameters of a file, with those in its place that --set and --output-dir give."""
    overrides = read_overrides(items)
    if output_dir:
        overrides["output_dir"] = str(Path(output_dir).expanduser().absolute())
    return StudyParams.load(path, **overrides)


def read_all(args: argparse.Namespace) -> list[StudyParams]:
    """The parameters of a command's file, and of those that it names under `also`, which lie beside it."""
    first = read_params(args.params, args.set, args.output_dir)
    paths = [args.params.parent / name for name in first.also]
    others = {path: read_params(path, args.set, args.output_dir) for path in paths}
    for path, params in others.items():
        if params.also:
            raise ParameterError(f"{path}: it has a list `also` itself; name those files in {args.params}")
    return [first, *others.values()]


def read_grid(args: argparse.Namespace) -> list[StudyParams]:
    """The parameters for each combination of the values in --set KEY=A,B,..., named <study>_<key>_<value>."""
    name, choices = read_params(args.params, [], None).study, []
    for item in args.set:
        key, _, text = item.partition("=")
        several = "," in text and not text.startswith(("[", "{"))
        if key == "study":
            name = text
        else:
            choices.append([(key, value.strip(), several) for value in (text.split(",") if several else [text])])
    if not any(several for choice in choices for _, _, several in choice):
        raise ParameterError("--grid: no --set has several values; give them as --set alpha=0.25,0.5,1.0")
    studies = []
    for chosen in itertools.product(*choices):
        study = "_".join([name, *(f"{key}_{value}" for key, value, several in chosen if several)])
        items = [f"study={study}", *(f"{key}={value}" for key, value, _ in chosen)]
        studies.append(read_params(args.params, items, args.output_dir))
        if studies[-1].also:
            raise ParameterError(f"--grid: {args.params} has a list `also`; --set 'also=[]' leaves it out")
    return studies


def run_study(args: argparse.Namespace) -> int:
    """Execute the notebooks of a study, of those under `also`, or of a --grid, which it compares; write reports."""
    studies = read_grid(args) if args.grid else read_all(args)
    names = [params.study for params in studies]
    if len(set(names)) < len(names):
        raise ParameterError(f"study = {names[0]!r}: also names a study of that name; each needs its own folder")
    for params in studies:
        plan(params.given)
    # The first that fails ends it: `any` asks no further.
    failed = any(execute(params, args.again) for params in studies)
    if args.grid and not failed:
        _compare([params.root / params.study for params in studies])
    elif not failed and read_overrides(args.set).keys() <= {"study", "frozen", "workers", "offline"}:
        from w2s.report.sentences import expected

        for line in filter(None, map(expected, [args.params.name, *studies[0].also])):
            print(line)
    return int(failed)


def compare_studies(args: argparse.Namespace) -> None:
    root = located(args.output_dir)
    _compare([root / study for study in dict.fromkeys(args.studies)])


def _compare(folders: list[Path]) -> None:
    from w2s.report import compare

    for folder in folders:
        if not folder.is_dir():
            there = sorted(path.parent.name for path in folder.parent.glob("*/report.html"))
            raise ParameterError(f"study {folder.name!r}: {nearest(folder.name, there)}")
    print(f"compared: {compare.write(folders, folders[0].parent / 'compare')}")


def show_status(args: argparse.Namespace) -> None:
    """Print the state of each run of a study; writes nothing."""
    from w2s.runs import store
    from w2s.study import Study

    params = read_params(args.params, args.set, args.output_dir)
    plan(params.given)
    study = Study.open(params)
    there = located(params.read_from or params.output_dir)
    done = {spec.name: "done" for spec in study.all_runs() if store.is_done(spec, there)}
    states = {spec.name: store.state(spec, study.root) for spec in study.all_runs()} | done
    for name, state in states.items():
        kind, _, why = state.partition(": ")
        print(f"{kind:<7} {name}{f': {why}' if why else ''}")
    places = " or ".join(str(root / "runs") for root in dict.fromkeys((study.root, there)))
    print(f"{list(states.values()).count('done')} of {len(states)} runs are in {places}")


def freeze_study(args: argparse.Namespace) -> None:
    """Pack what the runs of a study, and of those under `also`, predict."""
    from w2s.runs import frozen
    from w2s.study import Study

    for study in map(Study.open, read_all(args)):
        packed = frozen.pack(list(study.all_runs()), study.root, args.to or frozen.FOLDER)
        print(f"{packed}: {packed.stat().st_size / 1e6:.1f} MB")


def fetch_files(args: argparse.Namespace) -> None:
    from w2s.sources.fetch import fetch

    fetch(read_params(args.params, args.set, args.output_dir))


def hand_out(args: argparse.Namespace) -> None:
    from w2s.app import classroom

    written = classroom.hand_out(args.to, args.force, read_overrides(args.set))
    print(f"{len(written)} notebooks without solutions are in {args.to}")


def grade_answers(args: argparse.Namespace) -> None:
    from w2s.app import classroom

    if not args.timeout > 0:
        raise ParameterError(f"--timeout {args.timeout}: give seconds above 0")
    rerun_in = (args.output_dir or args.folder / ".rerun") if args.rerun else None
    text = classroom.grade(args.folder, rerun_in, args.timeout).convert_dtypes().to_csv(index=False)
    if args.to:
        write_atomic(args.to, lambda path: path.write_text(text, encoding="utf-8"))
    else:
        print(text, end="")


def list_zoo(args: argparse.Namespace) -> None:
    """Print the ladder: size, parameters, and the share of test pairs that its language models judge rightly."""
    from w2s import models, zoo
    from w2s.runs import judges
    from w2s.world import World

    pairs = World().pairs("test", StudyParams.model_fields["n_test"].default)
    print(f"{'size':<12}{'parameters':>12}{'knowledge':>11}   (of {len(pairs)} test pairs, before any fine-tuning)")
    for name in zoo.ladder():
        print(f"{name:<12}{models.n_parameters(name):>12,}{judges.judge(name, pairs)['correct'].mean():>11.3f}")


def build_zoo(args: argparse.Namespace) -> None:
    from w2s import zoo

    zoo.build(args.sizes or list(zoo.SIZES), args.output_dir or zoo.LADDER, device=args.device, workers=args.workers)


def run_benchmark(args: argparse.Namespace) -> int:
    """Run tests/benchmarks/bench.py, which a checkout of the kit has."""
    if not BENCHMARK.is_file():
        raise ParameterError(f"{BENCHMARK}: no benchmark there; run w2s bench from a checkout of the kit")
    return subprocess.call([sys.executable, str(BENCHMARK), "--to", "outputs/bench", *args.rest])


if __name__ == "__main__":
    sys.exit(main())
