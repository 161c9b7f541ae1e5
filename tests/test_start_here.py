"""The walkthrough: at most 70 lines of code, and the numbers of a study's cached runs."""

import nbformat
import numpy as np
from conftest import small_params

from w2s.analysis import scoring
from w2s.params import HOME
from w2s.runs import cluster
from w2s.study import Study

CELLS = [c.source for c in nbformat.read(HOME / "notebooks" / "00_start_here.ipynb", 4).cells if c.cell_type == "code"]


def test_it_is_short():
    assert sum(bool(line.strip()) for source in CELLS for line in source.splitlines()) <= 70


def test_its_numbers_are_those_of_the_study(tiny_models, tmp_path):
    params = small_params(tiny_models, tmp_path, seeds=[1], alpha=0.7, intermediate_models=[])
    namespace = {}
    exec(CELLS[0], namespace)
    namespace |= params.model_dump(exclude_unset=True)
    for source in CELLS[1:]:
        exec(source, namespace)

    study = Study.open(params)
    table = cluster.results(study, study.direct_runs()).query("split == 'test'")
    named = {"weak": "gold tiny-8 none", "ceiling": "gold tiny-24 none"}
    named |= {conflict: f"student tiny-24 {conflict}" for conflict in params.conflicts}
    who = table["role"] + " " + table["model"] + " " + table["conflict"]
    for column, run in named.items():
        cached = table[who == run].set_index("id")["probability"]
        np.testing.assert_array_equal(namespace["P"][column].to_numpy(), cached[namespace["P"].index].to_numpy())
    score = scoring.score_table(table, bootstrap=100).set_index(["strong", "conflict"])["score"]
    assert (
        namespace["ds"] == score["tiny-24", "implicit"]
        or np.isnan([namespace["ds"], score["tiny-24", "implicit"]]).all()
    )
