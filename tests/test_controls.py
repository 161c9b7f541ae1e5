"""Notebook 06: other labels, other strengths of the conflict, no training; what is counted, and what is said of it."""

import os

import numpy as np
import pandas as pd
import pytest
from conftest import small_params

from w2s import files
from w2s.analysis import controls
from w2s.analysis.pooled import pooled_table
from w2s.models import RewardModel, load_tokenizer
from w2s.params import ParameterError
from w2s.predict import predict
from w2s.report import sentences_extensions
from w2s.runs import cluster, estimate, store
from w2s.runs.labels import labelled_pairs, relabelled, weak_labels
from w2s.study import LABELS, Study


@pytest.fixture(scope="module")
def trained(tiny_models, tmp_path_factory):
    """A study of each method with its weak model, its ceiling and an undisturbed student trained."""
    studies = {}
    for method in ("reward", "dpo"):
        study = Study.open(small_params(tiny_models, tmp_path_factory.mktemp(method), method=method))
        weak, strong = tiny_models[0], tiny_models[2]
        cluster.results(study, study.gold_runs([weak, strong]) | {study.control(weak, strong, "weak", "none", 0): {}})
        studies[method] = study
    return studies


def test_shuffled_labels_are_the_same_numbers_elsewhere_and_random_ones_say_nothing_on_average():
    label = np.linspace(0.1, 0.9, 200)
    shuffled, again, other = (relabelled(label, "shuffled", seed) for seed in (1, 1, 2))
    assert sorted(shuffled) == sorted(label) and (shuffled != label).mean() > 0.9
    assert np.array_equal(shuffled, again) and not np.array_equal(shuffled, other)
    turned = relabelled(np.full(4000, 0.9), "random", seed=0)
    assert set(np.round(turned, 6)) == {0.1, 0.9} and abs(turned.mean() - 0.5) < 0.03


@pytest.mark.parametrize("method", ["reward", "dpo"])
def test_each_kind_of_labels_is_a_run_of_its_own(trained, tiny_models, method):
    study, weak, strong = trained[method], tiny_models[0], tiny_models[2]
    specs = {labels: study.control(weak, strong, labels, "explicit", 0) for labels in LABELS}
    assert len({spec.name for spec in specs.values()}) == len(LABELS)
    assert specs["weak"] == study.student(weak, strong, "explicit", 0)
    assert specs["gold"].teacher is None and specs["own"].teacher == study.gold(strong, 0)
    assert study.control(weak, strong, "weak", "explicit", 0, alpha=0.25).alpha == 0.25
    if method == "dpo":  # the warm start is on the responses that these labels prefer
        assert len({spec.start.name for spec in specs.values()}) == len(LABELS)
    label = {k: labelled_pairs(study.control(weak, strong, k, "none", 0), study.root)["label"] for k in LABELS}
    assert (label["gold"] == 1).all() and sorted(label["shuffled"]) == sorted(label["weak"])
    np.testing.assert_array_equal(label["own"], weak_labels(study.gold(strong, 0), study.root, "w2s")["weak_label"])


def test_labels_of_the_students_whose_answer_is_known(trained, tiny_models):
    study, weak, strong = trained["reward"], tiny_models[0], tiny_models[2]
    soft = labelled_pairs(study.control(weak, strong, "weak", "none", 0), study.root)["label"]
    for labels, before in (("weak", soft), ("gold", 1)):
        noisy = labelled_pairs(study.noisy(weak, strong, 0.25, 0, labels), study.root)["label"]
        turned = noisy != before
        assert 0.1 < turned.mean() < 0.4 and (noisy == np.where(turned, 1 - before, before)).all()
    ids, tables = soft.index, [store.load_predictions(study.gold(m, 0), study.root) for m in (strong, weak)]
    sure = [t[t["split"] == "w2s"].set_index("id").loc[study.data.w2s["id"], "probability"] for t in tables]
    threshold = float(
        np.median(np.maximum(sure[1], 1 - sure[1]))
    )  # so that tiny models know some pairs, and not others
    study = Study(study.params.model_copy(update={"threshold": threshold}))
    known = [(np.maximum(p, 1 - p) >= threshold).to_numpy() for p in sure]
    blind = known[0] & ~known[1]
    planted = {
        d: labelled_pairs(study.planted(weak, strong, d, 0, own=7), study.root)["label"] for d in (0.0, 0.5, 1.0)
    }
    assert 0 < blind.sum() < len(ids) and (planted[0.0] == 1).all() and ((planted[1.0] == 0) == blind).all()
    assert 0 < (planted[0.5] == 0).sum() < blind.sum() and blind[planted[0.5] == 0].all()


def test_without_training_the_unit_is_fresh(trained, tiny_models):
    study, strong = trained["reward"], tiny_models[2]
    table = cluster.results(study, {study.untrained(strong, 0): {}})
    fresh = predict(RewardModel.load(strong, seed=0), study.data.test, load_tokenizer(strong), 128, 10_000)
    margin, expected = (t.set_index("id")["margin"] for t in (table[table["split"] == "test"], fresh))
    pd.testing.assert_series_equal(margin, expected, check_names=False, atol=1e-5)


def test_a_perfect_teacher_makes_the_ceiling_of_its_pairs(small_study, tiny_models):
    """Labels of a teacher that is sure and right everywhere: the student is the gold-trained model, bit for bit."""
    weak, strong = tiny_models[0], tiny_models[2]
    teacher = small_study.gold(weak, 0)
    cluster.results(small_study, {teacher: {}})
    labels = store.load_predictions(teacher, small_study.root).assign(probability=1.0, margin=100.0, correct=True)
    folder = store.folder_of(teacher, small_study.root)
    os.replace(folder, store.beside(folder, "part"))
    files.write_table(store.beside(folder, "part") / "predictions.parquet", labels)
    store.finish(folder)
    student, ceiling = (small_study.control(weak, strong, labels, "none", 0) for labels in ("weak", "gold"))
    cluster.results(small_study, {student: {}, ceiling: {}})
    a, b = (store.load_predictions(spec, small_study.root).set_index(["split", "id"]) for spec in (student, ceiling))
    assert student.teacher == teacher and ceiling.teacher is None
    pd.testing.assert_series_equal(a["margin"], b["margin"].reindex(a.index), check_exact=True)


@pytest.mark.parametrize("method", ["reward", "dpo"])
def test_a_conflict_of_strength_zero_or_without_pairs_changes_nothing(trained, tiny_models, method):
    study, names = trained[method], (tiny_models[0], tiny_models[2], "weak")
    weightless = study.control(*names, "explicit", 0, alpha=0.0)
    without = study.control(*names, "implicit", 0, **cluster.helpful_pairs(study, 0))
    specs = [study.control(*names, "none", 0), weightless, without]
    cluster.results(study, {spec: {} for spec in specs})
    assert len({spec.name for spec in specs}) == 3 and labelled_pairs(without, study.root)["target"].all()
    none, *others = (store.load_predictions(spec, study.root).query("split == 'test'") for spec in specs)
    for other in others:
        np.testing.assert_array_equal(none["margin"], other["margin"])


def test_shares_of_the_helpful_pairs_are_nested_and_keep_the_teacher(trained, tiny_models):
    study, names = trained["reward"], (tiny_models[0], tiny_models[2])
    shares = {times: cluster.helpful_pairs(study, times) for times in (0.25, 1, 2)}
    specs = {t: study.control(*names, "weak", "implicit", 0, **fields) for t, fields in shares.items()}
    assert specs[1] == study.student(*names, "implicit", 0)  # the name of the study's own run
    assert {spec.teacher.name for spec in specs.values()} == {study.gold(names[0], 0).name}
    assert len({spec.name for spec in specs.values()}) == 3
    pairs = {times: labelled_pairs(spec, study.root) for times, spec in specs.items()}
    added = {times: table[~table["target"]].reset_index(drop=True) for times, table in pairs.items()}
    assert {times: len(table) for times, table in added.items()} == {0.25: 8, 1: 32, 2: 64}
    pd.testing.assert_frame_equal(added[1].head(8), added[0.25])
    pd.testing.assert_frame_equal(added[2].head(32), added[1])
    with pytest.raises(ParameterError, match="n_helpful = 3200: .* the world has 1600 prompts"):
        cluster.helpful_pairs(study, 100)


@pytest.mark.parametrize("method", ["reward", "dpo"])
def test_more_helpful_pairs_than_the_study_has_can_be_trained_on(trained, tiny_models, method):
    study, names = trained[method], (tiny_models[2], tiny_models[2], "gold", "implicit", 0)
    one, two = (study.control(*names, **cluster.helpful_pairs(study, times)) for times in (1, 2))
    assert estimate.run_seconds(two, study.root) > estimate.run_seconds(one, study.root)
    table = cluster.results(study, {one: {}, two: {}}).query("split == 'test'")
    test = table.pivot(index="id", columns="run", values="margin")
    assert test.notna().all().all() and (test[one.name] != test[two.name]).any()


def test_the_exchanged_study_has_runs_and_pairs_of_its_own(small_study):
    params, weak = small_study.params, small_study.params.weak_models[0]
    swapped = Study.open(params.model_copy(update={"target": params.conflicting}))
    assert swapped.params.conflicting == "harmless" and swapped.data.test.dimension.unique().tolist() == ["helpful"]
    assert swapped.gold(weak, 0).name != small_study.gold(weak, 0).name
    again = Study.open(swapped.params.model_copy(update={"target": "harmless"}))
    assert again.gold(weak, 0).name == small_study.gold(weak, 0).name


N = 10  # test pairs, and what each made-up run gives to the truly preferred response
CHANCES = {"weak": [0.6] * N, "ceiling": [0.9] * 8 + [0.6] * 2, "reference": [0.9] * 9 + [0.1]}
CHANCES |= {"one": [0.1] * 4 + [0.9] * 6}  # loses 4 of the reference's pairs
CHANCES |= {"two": [0.9] * 6 + [0.1] * 4}  # loses 3, of which 1 where the ceiling is unsure
CHANCES = pd.DataFrame(CHANCES | {"same": CHANCES["one"]}, index=[f"test-{i}" for i in range(N)])


def row(student, labels, seed=0, conflict="explicit"):
    runs = {"weak": "weak", "ceiling": "ceiling", "reference": "reference", "student": student}
    return runs | {"labels": labels, "conflict": conflict, "seed": seed}


ROWS = pd.DataFrame([row("one", "weak"), row("two", "gold"), row("same", "shuffled")])


def test_counts_by_hand():
    counts = controls.count_controls(ROWS, CHANCES)
    assert counts.indicators["tax"].sum(axis=1).tolist() == [4, 3, 4]
    assert counts.indicators["blind_tax"].sum(axis=1).tolist() == [4, 2, 4]  # blind: the first eight pairs
    table = pooled_table(counts, ["labels", "conflict"], bootstrap=100).set_index("labels")
    assert table.loc["gold", ["tax", "pairs"]].tolist() == [3, N]
    assert [table.loc["gold", "score"], table.loc["weak", "even_share"]] == pytest.approx([2 / 3, 8 / 9])
    assert counts.settings.columns[:3].tolist() == ["labels", "conflict", "seed"]


def test_what_cannot_be_counted_is_named():
    unscored = CHANCES.assign(one=CHANCES["one"].where(CHANCES.index != "test-3"))
    for rows, chances, message in (
        (ROWS.head(0), CHANCES, "^rows: no control"),
        (pd.DataFrame([row("absent", "weak")]), CHANCES, "^run absent: it lacks predictions"),
        (ROWS, unscored, "^run one: it lacks predictions"),
    ):
        with pytest.raises(ValueError, match=message):
            controls.count_controls(rows, chances)


def test_a_difference_is_taken_on_the_same_pairs():
    counts = controls.count_controls(ROWS, CHANCES)
    weak, gold, shuffled = ({"labels": k, "conflict": "explicit"} for k in ("weak", "gold", "shuffled"))
    result = controls.tax_difference(counts, weak, gold, 500)
    assert result["estimate"] == pytest.approx(0.1) and result["low"] < 0 < result["high"] and result["seeds"] == 1
    # The same tax on the same pairs: in every sample the difference is 0, whatever pairs are drawn.
    same = controls.tax_difference(counts, weak, shuffled, 500)
    assert same["estimate"] == 0 and -0.4 < same["low"] == -same["high"] < 0
    # Over seeds it is their mean.
    rows = pd.DataFrame([row("one", "weak", 0), row("two", "weak", 1), row("two", "gold", 0), row("two", "gold", 1)])
    result = controls.tax_difference(controls.count_controls(rows, CHANCES), weak, gold, 500)
    assert result["estimate"] == pytest.approx((0.1 + 0) / 2) and result["seeds"] == 2


def change(estimate, low, high, **names):
    return names | {"estimate": estimate, "low": low, "high": high, "seeds": 1}


def pooled_row(**values):
    usual = {"seeds": 3, "pairs": 1000, "tax": 120, "reference_accuracy": 0.8, "even_share": 0.4, "gap": 0.2}
    usual |= {"weak_accuracy": 0.6, "ceiling_accuracy": 0.8, "student_accuracy": 0.7, "conflict": "explicit"}
    for name, value in {"tax_share": 0.12, "score": 0.5, "score_minus_even": 0.1}.items():
        usual |= {name: value, f"{name}_low": value - 0.05, f"{name}_high": value + 0.05}
    return pd.Series(usual | values)


def test_the_answer_follows_the_intervals():
    settings = pd.DataFrame([pooled_row(labels="weak"), pooled_row(labels="random", reference_accuracy=0.51)])
    for gold, shuffled, *words in (
        ((0.2, 0.1, 0.3), (0.1, 0.05, 0.2), "weak labels add to the tax", "cost more than the same errors"),
        ((-0.2, -0.3, -0.1), (-0.1, -0.2, -0.05), "make it smaller", "cost less than the same errors"),
        ((0.0, -0.1, 0.1), (0.0, 0.0, 0.1), "add to it is not supported", "model errs is not supported"),
    ):
        ends = {"gold": gold, "shuffled": shuffled}
        rows = pd.DataFrame([change(*ends[less], conflict="explicit", less=less) for less in ends])
        tax, answer = sentences_extensions.label_lines(settings, rows, "a -> b")
        assert "0.12 [0.07, 0.17] with weak labels" in tax and "a -> b, 3 seeds" in tax
        assert "its tax is noise: random)" in tax and "noise: weak" not in tax
        assert all(part in answer for part in words), answer
    # no reference at chance, no word of it
    assert "chance" not in sentences_extensions.label_lines(settings.head(1), rows, "a -> b")[0]


def test_the_score_without_conflict():
    for values, words in (
        ({}, "Deception Score 0.50 [0.45, 0.55] over 120 tax pairs, 0.40 if they fell evenly: more than even"),
        ({"score_minus_even_low": -0.2, "score_minus_even_high": -0.1}, "less than even where the weak model is blind"),
        ({"score_minus_even_low": -0.2}, "a difference is not supported in this study"),
        ({"tax": 9}, "9 tax pairs, too few for a Score"),
        ({"reference_accuracy": 0.51}, "no Score: the accuracy of the reference cannot be told from chance"),
    ):
        line = sentences_extensions.no_conflict_line(pooled_row(**values), "a -> b")
        assert words in line and "loses 0.12 [0.07, 0.17] of the test pairs by weak supervision alone" in line


def test_whether_the_tax_rises_with_the_strength():
    step = {"conflict": "explicit", "measure": "in alpha", "smallest": 0.0, "largest": 2.0}
    rows = [change(0.8, 0.7, 0.9, labels="weak", **step), change(0.0, -0.1, 0.1, labels="gold", **step)]
    (line,) = sentences_extensions.strength_lines(pd.DataFrame(rows), "a -> b")
    assert "from 0 to 2 in alpha" in line and "0.800 [0.700, 0.900] with weak labels (it rises)" in line
    assert "with gold labels (a change is not supported in this study)" in line


def test_without_a_gap_or_a_ceiling_exchanged_roles_say_nothing():
    for gap, ceiling, silent in ((0.019, 0.8, True), (0.021, 0.8, False), (-0.3, 0.8, True), (0.1, 0.52, True)):
        names = {"target": "helpful", "conflicting": "harmless", "gap": gap, "ceiling_accuracy": ceiling}
        table = pd.DataFrame([pooled_row(**names, conflict="none"), pooled_row(**names)])
        (line,) = sentences_extensions.swapped_lines(table, "a -> b")
        assert "target helpful, conflict harmless" in line and "has 0.60 of the test" in line
        assert ("this control says nothing" in line) == silent and ("Deception Score" in line) != silent


def test_a_mute_ceiling_and_a_student_at_chance_are_warnings_of_their_seed():
    gold = {"role": "gold", "pairs": 1000, "accuracy": 0.5, "high": 0.53, "confident_share": 0.5}
    rows = [gold | {"model": m, "seed": s, "low": low} for m, s, low in (("b", 0, 0.6), ("b", 1, 0.47), ("a", 0, 0.4))]
    named = [
        ("weak", "none", 0, 0.8),
        ("weak", "none", 1, 0.51),
        ("weak", "explicit", 0, 0.1),
        ("gold", "none", 0, 0.5),
    ]
    columns = ["labels", "conflict", "seed", "student_accuracy"]
    students = pd.DataFrame([pooled_row(**dict(zip(columns, values))) for values in named])
    ceiling, student = sentences_extensions.control_warnings(pd.DataFrame(rows), "b", students)
    assert ceiling.startswith("Warning: the strong ceiling b, seed 1, cannot be told from chance")
    assert student.startswith("Warning: seed 1: the accuracy 0.51 of the student with weak labels and no conflict can")
