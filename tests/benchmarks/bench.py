"""Time and memory of training and scoring: this kit, TRL and a plain research loop on the same pairs.

    w2s bench                       all cases, about an hour; table and figure under outputs/bench
    w2s bench dpo 4x128             the cases of that method and model alone; those measured before stay in the table
    w2s bench --quick               tiny sizes, one repetition: does it run
    w2s bench --device cuda         on a GPU, in bfloat16: models of 124 million, 1.5 and 7 billion parameters as well

Contenders of a case take turns, one repetition each, on one core or one GPU, each in its own process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
from collections import ChainMap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
from contextlib import ExitStack
from datetime import date
from pathlib import Path

import contenders
import material
import measuring
import outcome
import page
import pandas as pd
from contenders import CPU, GPU, Case, Setting
from outcome import PROFILE

from w2s import models
from w2s.params import ParameterError

# Of the contenders' processes; the last keeps PyTorch's profiler from talking.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
SETTINGS = ONE_THREAD | {"KINETO_LOG_LEVEL": "5"}
METHODS, CONTEXTS = ("reward", "sft", "dpo", "simpo"), (512, 128)
TASKS = ("score", "train")  # in this order, as the kit's process keeps the memory that it once had
TRAINED, SCORED, BATCH = 64, 128, 32  # pairs
WARM_UPS = 2  # repetitions that are not timed: in the first ones a process still asks the system for memory
LOOKS = {"w2s": (measuring.shares, measuring.operations, measuring.tensors), "TRL": (measuring.tensors,)}
TRICKS_ON = "4x128"  # and the longest context: what each of the kit's tricks brings


def main(argv: list[str] | None = None) -> int:
    """Measure, and write after each case; returns 0, 1 where contenders disagree on a loss, 2 for wrong input."""
    args = _parser().parse_args(argv)
    os.environ |= SETTINGS
    setting = GPU if args.device == "cuda" else CPU
    if setting is CPU and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        try:
            models.choose_device(args.device)
            cases = chosen(list(make_cases(Path(folder), args.quick, args.large, setting)), args.only)
        except (ParameterError, ValueError) as error:
            print(f"w2s bench: {error}", file=sys.stderr)
            return 2
        rows = pd.DataFrame() if args.quick else outcome.earlier(args.to)
        for case in cases:
            try:
                found = list(measured(case, 1 if args.quick else args.repetitions, args.quick))
            except BrokenProcessPool:
                print(f"w2s bench: {case.name}: a contender's process was killed, most likely for want of memory; "
                      "measure this case alone or on a larger machine", file=sys.stderr)  # fmt: skip
                return 2
            rows = outcome.replaced(rows, pd.DataFrame(found))
            page.write(rows, args.to)
    if args.write_docs:
        page.write(rows, args.to, docs=True)
    return outcome.report(rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="w2s bench", description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="*", help="methods, models or contexts, such as dpo 4x128; all when none")
    parser.add_argument("--to", type=Path, required=True, help="folder for table and figure")
    parser.add_argument("--repetitions", type=int, default=3, help="timed ones of each contender")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one repetition; a table of their own")
    parser.add_argument("--large", action="store_true", help="also 12x768 with 50257 entries; always on a GPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: one GPU, with all models")
    parser.add_argument("--write-docs", action="store_true", help="write the device's page in docs/ as well")
    return parser


def make_cases(folder: Path, quick: bool, large: bool, setting: Setting = CPU) -> Iterator[Case]:
    """Every method on every model and context; models are written under `folder`.

    In bfloat16 also models of billions of parameters, which the kit alone trains as reward models and with SimPO.
    """
    real = None if quick else material.real_pairs()
    source = "generated" if real is None else "HH"
    learned, measured_on = real or (
        material.generated_pairs(200 if quick else 4000, 0),
        material.generated_pairs(1000, 1),
    )
    half = setting.dtype == "bfloat16"
    shapes = [material.TINY] if quick else [*material.SHAPES, *([material.LARGE] if large or half else [])]
    billions = (material.TINY_BILLIONS if quick else material.BILLIONS) if half else []
    trained, scored, batch = (8, 8, 4) if quick else (TRAINED, SCORED, BATCH)
    tokenizer = material.learned_tokenizer(learned, min(material.VOCABULARY, *(s.vocabulary for s in shapes)))
    for shape in [*shapes, *billions]:
        material.write_model(folder / shape.name, shape, tokenizer, setting.device)
        alone = shape in billions
        for context in CONTEXTS[-1:] if quick else CONTEXTS:
            pairs = material.fitting(measured_on, tokenizer, context, trained + scored)
            for method in ("reward", "simpo") if alone else METHODS:
                yield Case(
                    method, shape.name, context, folder / shape.name, pairs.head(trained),
                    pairs.tail(scored).reset_index(drop=True), batch, source, setting, shape.lora, alone,
                )  # fmt: skip


def chosen(cases: list[Case], words: list[str]) -> list[Case]:
    """The cases that have one of the words of each kind: method, model, context.

    Raises:
        ValueError: a word that is none of them.
    """
    kinds = [{case.method for case in cases}, {case.model for case in cases}, {str(case.context) for case in cases}]
    unknown = [word for word in words if not any(word in kind for kind in kinds)]
    if unknown:
        raise ValueError(f"{unknown[0]!r}: no such case; choose among {', '.join(sorted(set().union(*kinds)))}")
    wanted = [kind & set(words) or kind for kind in kinds]
    return [c for c in cases if all(x in kind for x, kind in zip((c.method, c.model, str(c.context)), wanted))]


def measured(case: Case, repetitions: int, one_process: bool) -> Iterator[dict]:
    """Rows: contender, task, repetition, seconds, outcome, memory; repetitions up to 0 warm up, PROFILE is profiled."""
    tricks = case.setting is CPU and case.model == TRICKS_ON and case.context == CONTEXTS[0]
    names = {task: contenders.contenders_of(case.method, task, tricks, case.alone) for task in TASKS}
    where = {"device": measuring.device_name(case.setting.device), "dtype": case.setting.dtype}
    with ExitStack() as stack:
        workers = {}
        for name in dict.fromkeys(name for found in names.values() for name in found):
            pool = (
                ThreadPoolExecutor(1) if one_process else ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
            )
            workers[name] = stack.enter_context(pool)
            workers[name].submit(measuring.load, name, case).result()
        for task in TASKS:
            for repetition in range(1 - (1 if one_process else WARM_UPS), repetitions + 1):
                for name in names[task]:
                    row = workers[name].submit(measuring.measure, name, case.name, task).result()
                    kind = where | {"method": case.method, "model": case.model, "context": case.context, "task": task}
                    n = len(case.train if task == "train" else case.test)
                    kind |= {"contender": name, "repetition": repetition, "pairs": n, "data": case.source}
                    yield kind | row | {"date": date.today().isoformat()}
            for name, looks in LOOKS.items():
                if name in names[task]:
                    found = [workers[name].submit(look, name, case.name, task).result() for look in looks]
                    yield kind | {"contender": name, "repetition": PROFILE} | dict(ChainMap(*found))
        print(f"done: {case.name}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
