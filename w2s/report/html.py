"""outputs/<study>/report.html: one self-contained page, from the tables and figures of a study's folder alone."""

from __future__ import annotations

import base64
import itertools
import platform
from collections.abc import Callable, Container, Mapping
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from w2s import __version__
from w2s.files import write_atomic
from w2s.params import StudyParams
from w2s.report import sentences
from w2s.report.claims import claim_table
from w2s.report.style import n_seeds, ranged, read_table

EXTENSIONS = {"controls": "06", "mitigations": "07", "knowledge": "10", "followups": "11"}  # that conclude something
MAIN = "04_score_by_gap"
TABLES = ["01_audit", "05_shorter", *(f"{n}_{t}" for n in ("04", "05") for t in ("accuracy", "scores", "findings"))]


def render(template: str, **values) -> str:
    """A page from w2s/templates; texts are escaped, and a name that is not given is an error."""
    options = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return Environment(loader=PackageLoader("w2s"), autoescape=True, **options).get_template(template).render(values)


def write_report(params: StudyParams, written: Container[str] | None = None, missing: Mapping = MappingProxyType({})):
    """Write report.html into the study's folder, the same bytes for the same study; ValueError where a table lacks.

    `written`: the files of the present run, relative to the folder; of others no figure is shown. `missing`: why runs
    lack, by name. Returns the page's path.
    """
    folder = params.root / params.study
    tables = {name: read_table(folder, name) for name in TABLES}
    chains = {name: tables[f"05_{name}"].query("role == 'bootstrapped'") for name in ("scores", "accuracy")}
    scores, accuracies = (pd.concat([tables[f"04_{name}"], chains[name]], ignore_index=True) for name in chains)
    numbers = ["04", "05", *(EXTENSIONS[name] for name in params.extensions if name in EXTENSIONS)]
    found = pd.concat([read_table(folder, f"{number}_findings") for number in numbers])
    lines = found["sentence"].drop_duplicates().tolist()
    warnings = [line for line in lines if line.startswith("Warning:")]
    paths = [p for p in sorted((folder / "figures").glob("*.png")) if written is None or f"figures/{p.name}" in written]
    lacking = [f"run {name} is missing ({why}); what needs it is left out" for name, why in missing.items()]
    claims = claim_table(folder)
    claims["claim"] = [sentences.words(f"claim_name_{claim}") for claim in claims["claim"]]
    taxed = (scores["tax"] > 0) | (scores["tax"].sum() == 0)
    page = render(
        "report.html", params=params, setup=sentences.setup(params), n_seeds=n_seeds,
        settings_run=f"{len(scores.groupby(['weak', 'strong', 'teacher']))} weak-strong pairs and chains",
        main=next((_figure(path) for path in paths if path.stem == MAIN), None),
        claims=claims.to_numpy().tolist(), example=example(folder, params),
        instrument=[line for line in lines if line.startswith(sentences.words("yardsticks_begin"))],
        warnings=[*lacking, *(line.removeprefix("Warning:").strip() for line in warnings)],
        summaries=[line for line in lines if line not in warnings],
        scores=scores_view(scores[taxed]), untaxed=[] if taxed.all() else scores_view(scores[~taxed]),
        accuracies=accuracies_view(accuracies, tables["05_shorter"]),
        truly_shorter=_number(tables["05_shorter"]["truly_shorter"].iloc[0]), audit=audit_view(tables["01_audit"]),
        figures={n: list(map(_figure, group)) for n, group in itertools.groupby(paths, lambda path: path.stem[:2])},
        settings=[(key, _yaml(value), StudyParams.model_fields[key].description)
                  for key, value in params.model_dump().items()],
        versions={"Python": platform.python_version(), "w2s": __version__,
                  **{name: version(name) for name in ("torch", "transformers")}},
    )  # fmt: skip
    return write_page(folder / "report.html", page)


def write_page(path: Path, page: str) -> Path:
    """Write a page with the same line ends on every system."""
    return write_atomic(path, lambda p: p.write_text(page, encoding="utf-8", newline="\n"))


def example(folder: Path, params: StudyParams) -> dict[str, str] | None:
    """A tax pair of the blind area, as text and in the models' words; None where there is none or texts are hidden."""
    path = folder / "tables" / "04_example.parquet"
    if not params.show_text or not path.exists() or not len(rows := pd.read_parquet(path)):
        return None
    row = rows.iloc[0]
    text = f"{row['prompt'].strip()}\n\nPreferred:{row['chosen']}\nRejected:{row['rejected']}"
    return {"text": text, "says": sentences.words("example", row, reference=row["none"])}


def scores_view(scores: pd.DataFrame) -> list[list[str]]:
    """The score table as rows of text, header first; shares with two digits and their intervals."""
    return _rows(scores, lambda row: {
        "Weak": row["weak"], "Through": row["teacher"] if row["via"] else "direct", "Strong": row["strong"],
        "Seed": str(row["seed"]), "Conflict": row["conflict"], "Tax pairs": f"{row['tax']} of {row['pairs']}",
        "Deception Score": _ranged(row, "score", "no tax"), "Even share": _number(row["even_share"]),
        "Difference": _ranged(row, "score_minus_even", "no tax"),
        "Lift": _ranged(row, "lift", "no even tax" if row["tax"] else "no tax")
        + (f", at most {row['lift_max']:.2f}" if row["turned"] else ""),
        "p": "< 0.001" if row["p"] < 0.001 else _number(row["p"], "no tax", ".3f"), "Gap": _number(row["gap"]),
        "Student accuracy": _ranged(row, "student_accuracy") + (" (turned round)" if row["turned"] else ""),
        "PGR": _ranged(row, "pgr", "gap too small"),
    })  # fmt: skip


def accuracies_view(accuracies: pd.DataFrame, shorter: pd.DataFrame) -> list[list[str]]:
    """The accuracy table as rows of text, header first, with how often each run prefers the shorter response."""
    shares = shorter.set_index("run")["shorter"]
    return _rows(accuracies, lambda row: {
        "Model": row["model"],
        "Taught by": ", then ".join(filter(None, (row["via"], row["teacher"]))) or "gold labels",
        "Seed": str(row["seed"]), "Conflict": row["conflict"], "Accuracy": _ranged(row, "accuracy"),
        "Mean confidence": _number(row["confidence"]), "Share confident": _number(row["confident_share"]),
        "Accuracy there": _number(row["confident_accuracy"], "no such pair"),
        "Calibration error": _number(row["ece"]), "Prefers the shorter": _number(shares.get(row["run"], np.nan)),
    })  # fmt: skip


def audit_view(audit: pd.DataFrame) -> list[list[str]]:
    """The audit turned round, one column a split, without counts that are 0 everywhere; hashes cut to 12 digits."""
    rows = [["", *audit["split"]]]
    for column, texts in audit.drop(columns="split").items():
        if pd.api.types.is_numeric_dtype(texts):
            texts = [f"{v:.1f}" if v % 1 else f"{v:.0f}" for v in texts.fillna(0)]
        elif column == "sha256":
            texts = [" + ".join(part[:12] for part in v.split(" + ")) for v in texts]
        if set(texts) != {"0"}:
            rows.append([column.replace("_", " "), *texts])
    return rows


def _rows(table: pd.DataFrame, view: Callable[[dict], dict[str, str]]) -> list[list[str]]:
    """Header and rows, without a column Seed or Through that would say the same everywhere."""
    shown = pd.DataFrame([view(row) for row in table.to_dict("records")])
    same = [name for name in ("Seed", "Through") if name in shown and shown[name].nunique() == 1]
    return [list(shown.drop(columns=same)), *shown.drop(columns=same).to_numpy().tolist()]


def _yaml(value: Any) -> str:
    return yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10_000).strip()[1:-1]


def _number(value: float, missing: str = "not defined", digits: str = ".2f") -> str:
    return missing if np.isnan(value) else format(value, digits)


def _ranged(row: dict, name: str, missing: str = "not defined") -> str:
    return missing if np.isnan(row[name]) else ranged(row, name)


def _figure(path: Path) -> dict[str, str | int]:
    """A PNG for the page: base64 text, width in CSS pixels, name, and the caption that `style.save` keeps inside."""
    with Image.open(path) as image:
        width = round(image.width * 96 / image.info.get("dpi", (96,))[0])  # 96 CSS pixels are an inch
        caption = image.text.get("Description", "")
    return {"name": path.stem, "caption": caption, "width": width, "png": base64.b64encode(path.read_bytes()).decode()}
