"""Predictions that ship with the kit: the full pocket study of each method, for analyses without training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from w2s import files
from w2s.params import PACKAGE, ParameterError
from w2s.runs import store
from w2s.spec import RunSpec

FOLDER = PACKAGE / "frozen"
STEP = 2.0**-10  # numbers are rounded to multiples of it, which halves the files
# What is kept of each run: all else (margin, probability, correct) follows from it.
LOGPS, TOKENS = ["chosen_logp", "rejected_logp"], ["chosen_tokens", "rejected_tokens"]  # all runs count tokens alike
KEPT = {"reward": ["margin"], "simpo": LOGPS, "dpo": [*LOGPS, "reference_margin"]}


def pack(specs: list[RunSpec], root: Path, folder: Path = FOLDER) -> Path:
    """Write <method>.parquet (one row a pair, one column a run and quantity) and <method>.json (what was run).

    Kept are the test and validation pairs of every run, and for a teacher the pairs that it labels.
    Raises ValueError for a run that is not in the cache, or token counts that differ between runs.
    """
    method, columns, counts = specs[0].method, {}, None
    taught = {(spec.teacher.name, spec.split) for spec in specs if spec.teacher}
    for spec in specs:
        if not store.is_done(spec, root):
            raise ValueError(f"{spec.name}: not in {root / 'runs'}; train the study first, with w2s run")
        kept = {"test", "validation"} | {split for teacher, split in taught if teacher == spec.name}
        table = store.load_predictions(spec, root)
        table = table[table["split"].isin(kept)].set_index(["split", "id"])
        steps = (table[KEPT[method]] / STEP).round()
        steps = steps.where(steps != 0, np.sign(table[KEPT[method]]))  # never 0, so that a reward margin keeps its sign
        columns |= {f"{spec.name}/{quantity}": steps[quantity] * STEP for quantity in KEPT[method]}
        if method != "reward":
            counts = table[TOKENS] if counts is None else counts.combine_first(table[TOKENS])
            if not counts.loc[table.index].equals(table[TOKENS].astype(counts.dtypes)):
                raise ValueError(f"{spec.name}: its tokenizer counts other tokens than that of {specs[0].name}")
    wide = pd.DataFrame(columns).astype("float32")
    wide = wide if counts is None else wide.join(counts.astype("int16"))
    how = {"compression": "zstd", "compression_level": 19, "use_dictionary": False, "write_statistics": False}
    how["column_encoding"] = dict.fromkeys(columns, "BYTE_STREAM_SPLIT")
    arrow = pa.Table.from_pandas(wide.reset_index(), preserve_index=False)
    files.write_json(folder / f"{method}.json", {spec.name: described(spec) for spec in specs})
    return files.write_atomic(folder / f"{method}.parquet", lambda p: pq.write_table(arrow, p, **how))


def described(spec: RunSpec) -> dict:
    """A run's identity, with the names of the runs behind it in place of theirs."""
    return spec.identity | {key: run.name for key in ("teacher", "start", "ceiling") if (run := getattr(spec, key))}


def load_predictions(spec: RunSpec, folder: Path = FOLDER) -> pd.DataFrame:
    """A shipped run's rows: split, id, and the quantities of its method (KEPT, and TOKENS where it has any).

    Raises ParameterError where the run does not ship.
    """
    path, own = folder / f"{spec.method}.parquet", {f"{spec.name}/{name}": name for name in KEPT[spec.method]}
    if not path.exists() or not set(own) <= set(pq.read_schema(path).names):
        raise ParameterError(
            f"frozen = True: no predictions of {spec.name} ship with the kit (those of params/pocket_full*.yaml do); "
            "set frozen: false to train it"
        )
    tokens = [] if spec.method == "reward" else TOKENS
    return pd.read_parquet(path, columns=["split", "id", *own, *tokens]).rename(columns=own).dropna(ignore_index=True)
