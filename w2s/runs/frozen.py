"""Predictions that ship with the kit: the full pocket study of each method, for analyses without training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from w2s import files
from w2s.files import write_atomic
from w2s.params import PACKAGE, ParameterError
from w2s.runs import store
from w2s.spec import RunSpec

FOLDER = PACKAGE / "frozen"
STEP = 2.0**-10  # numbers are rounded to multiples of it, which halves the files
# What is kept of each run: all else (margin, probability, correct) follows from it.
KEPT = {
    "reward": ["margin"],
    "simpo": ["chosen_logp", "rejected_logp"],
    "dpo": ["chosen_logp", "rejected_logp", "reference_margin"],
}
TOKENS = ["chosen_tokens", "rejected_tokens"]  # the same for all runs, whose models share one tokenizer


def pack(specs: list[RunSpec], root: Path, folder: Path = FOLDER) -> Path:
    """Write <method>.parquet (one row a pair, one column a run and quantity) and <method>.json (what was run).

    Kept are the test and validation pairs of every run, and for a teacher the pairs that it labels.

    Raises:
        ValueError: a run that is not in the cache, or token counts that differ between runs.
    """
    method, taught = specs[0].method, {}
    for spec in specs:
        if spec.teacher:
            taught.setdefault(spec.teacher.name, set()).add(spec.split)
    columns, counts = {}, None
    for spec in specs:
        if not store.is_done(spec, root):
            raise ValueError(f"{spec.name}: not in {root / 'runs'}; train the study first, with w2s run")
        table = store.load_predictions(spec, root)
        table = table[table["split"].isin({"test", "validation"} | taught.get(spec.name, set()))]
        table = table.set_index(["split", "id"])
        for quantity in KEPT[method]:
            columns[f"{spec.name}/{quantity}"] = rounded(table[quantity])
        if method != "reward":
            counts = table[TOKENS] if counts is None else counts.combine_first(table[TOKENS])
            if not counts.loc[table.index].equals(table[TOKENS].astype(counts.dtypes)):
                raise ValueError(f"{spec.name}: its tokenizer counts other tokens than that of {specs[0].name}")
    wide = pd.DataFrame(columns).astype("float32")
    wide = wide if counts is None else wide.join(counts.astype("int16"))
    kinds = {"compression": "zstd", "compression_level": 19, "use_dictionary": False, "write_statistics": False}
    split = {name: "BYTE_STREAM_SPLIT" for name in wide if "/" in name}
    arrow = pa.Table.from_pandas(wide.reset_index(), preserve_index=False)
    write_atomic(folder / f"{method}.parquet", lambda p: pq.write_table(arrow, p, column_encoding=split, **kinds))
    files.write_json(folder / f"{method}.json", {spec.name: described(spec) for spec in specs})
    return folder / f"{method}.parquet"


def rounded(values: pd.Series) -> pd.Series:
    """To the nearest multiple of STEP, but never to 0, so that a reward margin keeps its sign."""
    steps = np.round(values / STEP)
    return steps.where(steps != 0, np.sign(values)) * STEP


def described(spec: RunSpec) -> dict:
    """A run's identity, with the names of the runs behind it in place of theirs."""
    behind = {key: run.name for key, run in (("teacher", spec.teacher), ("start", spec.start)) if run}
    return spec.identity | behind


def load_predictions(spec: RunSpec, folder: Path = FOLDER) -> pd.DataFrame:
    """A shipped run's rows: split, id, and the quantities of its method (KEPT, and TOKENS where it has any).

    Raises:
        ParameterError: the run does not ship.
    """
    path = folder / f"{spec.method}.parquet"
    own = {f"{spec.name}/{quantity}": quantity for quantity in KEPT[spec.method]}
    if not path.exists() or not set(own) <= set(pq.read_schema(path).names):
        raise ParameterError(
            f"frozen = True: no predictions of {spec.name} ship with the kit (those of params/pocket_full*.yaml do); "
            "set frozen: false to train it"
        )
    tokens = [] if spec.method == "reward" else TOKENS
    table = pd.read_parquet(path, columns=["split", "id", *own, *tokens]).rename(columns=own)
    return table.dropna(ignore_index=True)
