"""Answers are kept by their checks, counted by `w2s grade`; `w2s handout` leaves out solutions and nothing else."""

import io
import json

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from w2s import files
from w2s.app import cli, headless
from w2s.course import answers, checks
from w2s.lab import Lab

RIGHT = {"exercise": "holm", "right": True, "message": "correct: so it is"}
WRONG = {"exercise": "holm", "right": False, "message": "not yet: no"}


def write(path, *cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=list(cells)), path)
    return path


def recorded(*records, **metadata):
    """A cell whose outputs carry records, as a check leaves them."""
    outputs = [new_output("display_data", {"text/plain": "x", answers.MIME: record}) for record in records]
    return new_code_cell("1", outputs=outputs, metadata=metadata)


def graded(folder, capsys, *options) -> pd.DataFrame:
    assert cli.main(["grade", str(folder), *options]) == 0
    return pd.read_csv(io.StringIO(capsys.readouterr().out), index_col="student", keep_default_na=False, dtype=str)


def test_a_check_returns_its_record_and_keeps_it_in_the_open_study(tmp_path, capsys):
    assert checks.check_holm(4).right is False and not list(tmp_path.iterdir())  # no study is open
    Lab.of({"study": "mine", "output_dir": str(tmp_path)})
    capsys.readouterr()
    file = tmp_path / "mine" / "answers.json"
    answer = checks.check_holm(4)
    assert capsys.readouterr().out == answer.message + "\n"
    assert json.loads(file.read_text())["holm"] == {"exercise": "holm", "right": False, "message": answer.message}
    assert checks.check_holm(None).right is None  # the stub again: the answer stays
    assert answers.read(file) == [answer]
    assert checks.check_holm(2).right is True
    raised = checks.check_reverse_gradient(lambda *_: 1 / 0)
    assert raised.right is False and raised.message.startswith("not yet: your function raises ZeroDivisionError")
    checks.check_pgr(None, 0.6, 0.7, 0.8)
    kept = {answer.exercise: answer.right for answer in answers.read(file)}
    assert kept == {"holm": True, "reverse_gradient": False, "pgr": None}
    assert [path.name for path in file.parent.iterdir()] == ["answers.json"]


@pytest.mark.parametrize("content", ["[]", "{", '{"holm": {"exercise": "holm", "right": 1, "message": ""}}'])
def test_a_damaged_file_of_answers_stops_no_notebook_and_is_left(tmp_path, monkeypatch, capsys, content):
    monkeypatch.setattr(files, "open_study", tmp_path)
    (tmp_path / "answers.json").write_text(content)
    assert checks.check_holm(2).right
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith(f"not kept in {tmp_path / 'answers.json'}: ") and "move that file away" in line
    assert (tmp_path / "answers.json").read_text() == content


def test_answers_make_no_notebook_of_a_study_be_executed_again(tmp_path):
    source = write(tmp_path / "01_a.ipynb")
    record = headless.Executed(tmp_path / "study", [])
    key, before = record.key(source, {}), record.written()
    answers.keep(answers.Answer(**RIGHT), record.folder)
    files.write_json(record.folder / "own.json", {})
    record.add("01_a.ipynb", key, before)
    answers.keep(answers.Answer("pgr", False, "no"), record.folder)
    assert record.files() == {"own.json"} and record.holds("01_a.ipynb", key)


@pytest.fixture
def masters(tmp_path, monkeypatch):
    """A folder of notebooks with a tagged and a folded solution."""
    solution = new_code_cell("answer = 2", metadata={"tags": ["other", "solution"]})
    told = new_markdown_cell("## Why\nThe solution is secret", metadata={"tags": ["solution"]})
    folded = new_markdown_cell("Before.\n\n<details><summary>Solution</summary>\n\n1\n\n</details>\n\n**2.** ü after ")
    only = new_markdown_cell("<details><summary>Solution</summary>\n2\n</details>")
    stub = new_code_cell("answer = None  # solution\nchecks.check_holm(answer)\n", metadata={"tags": ["stub"]})
    stub.outputs = [new_output("display_data", {"text/plain": "x", answers.MIME: RIGHT})]
    monkeypatch.setattr(headless, "NOTEBOOKS", tmp_path / "notebooks")
    write(tmp_path / "notebooks" / "01_a.ipynb", new_markdown_cell("# A\n"), stub, solution, told, folded, only)
    return tmp_path / "notebooks"


def test_a_handout_has_stubs_and_no_solutions(masters, tmp_path, capsys):
    assert cli.main(["handout", "--to", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"1 notebooks without solutions are in {tmp_path / 'out'}\n"
    before, after = (nbformat.read(folder / "01_a.ipynb", 4) for folder in (masters, tmp_path / "out"))
    sources = ["# A\n", "answer = None  # solution\nchecks.check_holm(answer)\n", "Before.\n\n**2.** ü after "]
    assert [cell.source for cell in after.cells] == sources and after.metadata == before.metadata
    assert [cell.id for cell in after.cells] == [before.cells[i].id for i in (0, 1, 4)]
    assert after.cells[1].metadata == {"tags": ["stub"]} and after.cells[1].outputs == []


def test_a_handout_names_the_class_where_every_notebook_reads_it(masters, tmp_path, capsys):
    source = 'study: str = "pocket"  # name\nalpha: float = 0.5  # w'
    write(masters / "01_a.ipynb", new_code_cell(source, metadata={"tags": ["parameters"]}))
    given = ("--set", "read_from=/class/outputs", "--set", "alpha=1.0")
    assert cli.main(["handout", "--to", str(tmp_path / "out"), *given]) == 0
    names: dict = {}
    exec(nbformat.read(tmp_path / "out" / "01_a.ipynb", 4).cells[0].source, names)
    assert (names["study"], names["alpha"], names["read_from"]) == ("pocket", 1.0, "/class/outputs")
    assert cli.main(["handout", "--to", str(tmp_path / "new"), "--set", "red_from=x"]) == 2
    assert "unknown parameter 'red_from'" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_a_handout_that_cannot_be_is_one_line_and_status_2(masters, tmp_path, capsys):
    def refused(to, *options):
        assert cli.main(["handout", "--to", str(to), *options]) == 2
        return capsys.readouterr().err

    (tmp_path / "file").write_text("")
    assert refused(tmp_path / "file") == f"w2s: --to {tmp_path / 'file'}: a file is there; name a folder\n"
    assert "with their solutions; name another folder" in refused(masters, "--force")
    assert cli.main(["handout", "--to", str(tmp_path / "out")]) == 0
    assert "not empty; name another folder, or" in refused(tmp_path / "out")
    assert cli.main(["handout", "--to", str(tmp_path / "out"), "--force"]) == 0
    write(masters / "02_b.ipynb", new_markdown_cell("<details><summary>Solution</summary> open"))
    assert "02_b.ipynb, cell " in refused(tmp_path / "new") and not (tmp_path / "new").exists()


def test_grades_are_a_row_a_student_and_a_broken_file_costs_its_own(tmp_path, capsys):
    write(tmp_path / "ann" / "week1" / "07.ipynb", recorded(RIGHT, WRONG), recorded({**WRONG, "right": None}))
    files.write_json(tmp_path / "bob" / "answers.json", {"holm": RIGHT, "pgr": {**WRONG, "exercise": "pgr"}})
    write(tmp_path / "cas.ipynb", recorded(WRONG, RIGHT))
    (tmp_path / "dan.ipynb").write_text("{")
    files.write_json(tmp_path / "eve" / "answers.json", {"holm": {**RIGHT, "exercise": "none"}})
    write(tmp_path / "eve" / "07.ipynb", recorded(RIGHT))
    (tmp_path / "fay").mkdir()
    write(tmp_path / "gil.ipynb", new_code_cell("raise SystemExit"))
    (tmp_path / "hal.json").write_text("[" * 10**6)
    write(tmp_path / ".hidden.ipynb", recorded(RIGHT))
    write(tmp_path / "ida" / ".ipynb_checkpoints" / "07.ipynb", recorded(RIGHT))
    table = graded(tmp_path, capsys)
    assert list(table.columns) == [*answers.exercises(), "right", "problem"]
    marks = {"ann": "0", "bob": "1", "cas": "1", "dan": "", "eve": "1", "fay": "", "gil": "", "hal": "", "ida": ""}
    assert table["holm"].to_dict() == marks
    assert table.loc["bob", ["pgr", "right", "problem"]].tolist() == ["0", "1", ""]
    problems = table.loc[table["problem"] != "", "problem"]
    starts = {"dan": "in dan.ipynb: NotJSONError", "eve": "in answers.json: ValueError: \"{'exercise': 'none'"}
    starts |= {"fay": "no answers.json and no notebook", "gil": "in gil.ipynb: no check has been run"}
    starts |= {"hal": "in hal.json: RecursionError", "ida": "no answers.json and no notebook"}
    assert problems.index.tolist() == [*starts] and all(problems[name].startswith(starts[name]) for name in starts)
    assert graded(tmp_path, capsys, "--rerun")["problem"]["bob"] == "no notebook to execute"


def test_a_rerun_counts_what_the_checks_say_then(tmp_path, capsys):
    """A forged record, also of a cell that is not executed, counts without --rerun alone."""
    setup = new_code_cell("from w2s.course import checks\nfrom w2s.lab import Lab\nlab = Lab.of(globals())")
    parameters = new_code_cell("study: str = 'hers'\noutput_dir = '/dev/null'", metadata={"tags": ["parameters"]})
    forged, skipped = recorded(RIGHT), recorded({**RIGHT, "exercise": "pgr"}, tags=["skip-execution"])
    forged.source = "checks.check_holm(4)"
    again = new_code_cell("1 / 0"), new_code_cell("checks.check_adaptive_verdicts([1] * 5)")
    write(tmp_path / "in" / "ann.ipynb", parameters, setup, forged, skipped, *again)
    write(tmp_path / "in" / "bob.ipynb", new_code_cell("import os\nos._exit(1)"))
    columns = ["holm", "pgr", "adaptive_verdicts", "right"]
    assert graded(tmp_path / "in", capsys).loc["ann", columns].tolist() == ["1", "1", "", "2"]
    table = graded(tmp_path / "in", capsys, "--rerun", "--output-dir", str(tmp_path / "runs"))
    assert table.loc["ann", columns].tolist() == ["0", "", "1", "1"]
    assert table.loc["ann", "problem"].startswith("in ann.ipynb: a cell fails with ZeroDivisionError")
    assert "DeadKernelError" in table.loc["bob", "problem"]
    kept = {answer.exercise: answer.right for answer in answers.read(tmp_path / "runs" / "hers" / "answers.json")}
    assert kept == {"holm": False, "adaptive_verdicts": True}


def test_grades_that_cannot_be_are_one_line_and_status_2(tmp_path, capsys):
    files.write_json(tmp_path / "bob" / "answers.json", {})
    cases = {"nowhere": "no folder there", "bob": "name the one above", "empty": "no sub-folder, notebook or"}
    (tmp_path / "empty").mkdir()
    for name, words in cases.items():
        assert cli.main(["grade", str(tmp_path / name)]) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and words in line and str(tmp_path / name) in line
    assert cli.main(["grade", str(tmp_path), "--rerun", "--timeout", "0"]) == 2
    assert "--timeout 0.0: give seconds above 0" in capsys.readouterr().err
    assert cli.main(["grade", str(tmp_path), "--to", str(tmp_path / "grades.csv")]) == 0
    assert (tmp_path / "grades.csv").read_text().startswith("student,same_student,")
