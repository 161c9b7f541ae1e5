"""Loading, splitting, auditing and mixing pairs; hand-made folders, fake hub parts, the real HH files."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from w2s.data import PAIR_COLUMNS, audit_tokens, load, table_fingerprint, training_pairs
from w2s.params import ParameterError, StudyParams
from w2s.sources.audit import DROPS, DataError, fault_of
from w2s.world import SPLITS

REAL = Path(os.environ.get("W2S_DATA_DIR") or Path(__file__).parents[2] / "shared/data/hh-single-turn")
ABSENT = "the real HH files are absent: set W2S_DATA_DIR to the folder of harmless_test.jsonl"
needs_real_files = pytest.mark.skipif(not (REAL / "harmless_test.jsonl").is_file(), reason=ABSENT)
TARGETS, NOTHING = sorted(set(SPLITS) - {"helpful"}), dict.fromkeys(SPLITS)
HH, CAI = "Anthropic/hh-rlhf", "HuggingFaceH4/cai-conversation-harmless"
SEVERAL_TURNS = "a\n\nAssistant: b\n\nHuman: c"


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv("W2S_DATA_DIR", raising=False)


def hh(question, chosen="good", rejected="bad", rejected_question=None):
    texts = {"chosen": (question, chosen), "rejected": (rejected_question or question, rejected)}
    return {key: f"\n\nHuman: {asked}\n\nAssistant: {answer}" for key, (asked, answer) in texts.items()}


def rows(name, n):
    return [hh(f"{name} {i}", f"good {i}", f"bad {i}") for i in range(n)]


def full(folder, **files):
    """JSONL files, of six pairs for every split; keywords replace or add rows (bytes: a line as it stands), or None."""
    for name, content in ({split: rows(split, 6) for split in SPLITS} | files).items():
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in content or []]
        if content is not None:
            (folder / f"{name}.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return folder


def params(data, **values):
    return StudyParams(data=str(data), **({f"n_{split}": 2 for split in SPLITS} | values))


def row_of(data, split):
    return data.audit.set_index("split").loc[split]


def checked(params):
    """The loaded data: splits share no prompt, and every row read is kept, dropped for a reason, unused or carved."""
    data = load(params)
    prompts = {split: set(getattr(data, split).prompt) for split in SPLITS}
    assert len(set.union(*prompts.values())) == sum(map(len, prompts.values()))
    audit = data.audit
    assert (audit.kept == audit.rows_read + audit.carved - audit[list(DROPS)].sum(axis=1)).all()
    assert audit.carved.sum() == 0
    return data


def test_shared_prompts_stay_in_the_split_of_higher_priority(tmp_path):
    """Hand-worked: t is in all five, v in four, g in three, w in two; each stays where it is first."""
    t, v, g, w = hh("t"), hh("v"), hh("g"), hh("w")
    shared = {"test": [t], "validation": [t, v], "gt": [t, v, g], "w2s": [t, v, g, w], "helpful": [t, v, g, w]}
    full(tmp_path, **{split: [*pairs, *rows(split, 1 + (split == "helpful"))] for split, pairs in shared.items()})
    data = checked(params(tmp_path))
    assert data.audit.set_index("split").dropped_as_shared.to_dict() == dict(zip(SPLITS, (2, 3, 4, 1, 0), strict=True))
    assert {p.split()[1] for p in data.test.prompt} == {"t", "test"}
    others = ["shared_test", "shared_validation", "shared_w2s", "shared_helpful"]
    assert row_of(data, "gt")[others].tolist() == [1, 2, 3, 3]


def test_duplicates_are_counted_and_only_identical_pairs_dropped(tmp_path):
    pairs = [hh("q", "a", "b"), hh("q", "a", "b"), hh("q", "c", "d"), hh("other")]
    data = load(params(full(tmp_path, gt=pairs), n_gt=3))
    row = row_of(data, "gt")
    assert (row.duplicate_prompts, row.identical_pairs, row.kept, row.duplicate_prompts_kept) == (2, 1, 3, 1)
    assert sorted(data.gt.chosen) == [" a", " c", " good"]


def test_validation_is_carved_from_gt_by_prompt(tmp_path):
    full(tmp_path, gt=[hh(f"q{i // 3}", f"good {i}") for i in range(30)], validation=None)
    data = checked(params(tmp_path, n_validation=8, n_gt=20))
    # 8 pairs need 3 of the prompts with 3 pairs each: 9 are carved, 1 of them unused.
    assert row_of(data, "validation")[["rows_read", "carved", "unused", "kept"]].tolist() == [0, 9, 1, 8]
    assert row_of(data, "gt")[["rows_read", "carved", "unused", "kept"]].tolist() == [30, -9, 1, 20]
    assert table_fingerprint(load(params(tmp_path, n_validation=8)).validation) == table_fingerprint(data.validation)


@pytest.mark.parametrize(("name", "own"), [("harmless", "test"), ("train", "gt"), ("train", None)])
def test_splits_are_drawn_from_a_pool_without_the_pairs_of_files_of_their_own(tmp_path, name, own):
    files = {name: [*rows("pool", 12), *rows(own or "test", 3)], "helpful_online": rows("helpful", 2)}
    data = checked(params(full(tmp_path, **NOTHING | files | ({own: rows(own, 4)} if own else {})), n_gt=4))
    for split in TARGETS:
        assert row_of(data, split).source == (f"{split}.jsonl" if split == own else f"{name}.jsonl")
    assert row_of(data, "gt").kept == 4
    assert row_of(data, "test" if own == "gt" else "gt").dropped_as_shared == (3 if own else 0)


def test_tables_have_the_agreed_columns_and_depend_on_neither_seeds_nor_other_sizes_nor_place(tmp_path):
    (tmp_path / "copy").mkdir()
    first = load(params(full(tmp_path, gt=rows("gt", 50))))
    for split in SPLITS:
        table = getattr(first, split)
        assert table.id.tolist() == [f"{split}-00000", f"{split}-00001"]
        assert table.columns.tolist() == PAIR_COLUMNS
        assert set(table.dimension) == {"helpful" if split == "helpful" else "harmless"}
        assert table.prompt.str.endswith("\n\nAssistant:").all() and table.chosen.str.startswith(" good").all()
    assert load(params(full(tmp_path / "copy", gt=rows("gt", 50)), seeds=[7, 8])).fingerprint == first.fingerprint
    more = load(params(tmp_path, n_gt=50))
    assert more.fingerprint != first.fingerprint
    pd.testing.assert_frame_equal(more.gt.head(2), first.gt)
    pd.testing.assert_frame_equal(more.w2s, first.w2s)
    numbers = [int(text.split()[-1]) for text in more.gt.chosen]
    # The random order is NumPy's of seed 0: another one would change every study.
    assert numbers == np.argsort(np.random.default_rng(0).permutation(50)).tolist()


def test_with_helpful_as_the_target_helpful_files_are_the_pool(tmp_path):
    both = [*rows("helpful", 12), *rows("gt", 3)]  # a prompt in both dimensions stays with the target
    data = checked(params(full(tmp_path, helpful=both), target="helpful", n_gt=9, n_helpful=14))
    for split in TARGETS:
        table = getattr(data, split)
        assert set(table.dimension) == {"helpful"} and table.prompt.str.contains("Human: helpful|Human: gt").all()
        assert row_of(data, split).source == "helpful.jsonl" and table.id.str.startswith(split).all()
    assert set(data.helpful.dimension) == {"harmless"} and not data.helpful.prompt.str.contains("helpful").any()
    assert row_of(data, "helpful").source == "gt.jsonl + test.jsonl + validation.jsonl + w2s.jsonl"
    assert row_of(data, "helpful").dropped_as_shared == 3 and data.source["target"] == "helpful"


def test_helpful_pairs_may_be_more_or_none_and_change_nothing_else(tmp_path):
    for where in (full(tmp_path), "pocket"):
        one, more = load(params(where)), load(params(where, n_helpful=5))
        pd.testing.assert_frame_equal(more.helpful.head(2), one.helpful)
        assert len(more.helpful) == 5
        (tmp_path / "helpful.jsonl").write_bytes(b"{")  # which is then not read
        none = load(params(where, n_helpful=0, conflicts=["none", "explicit"]))
        assert none.helpful.empty and none.helpful.columns.tolist() == one.gt.columns.tolist()
        assert row_of(none, "helpful").kept == 0
        with pytest.raises(ValueError, match="set n_helpful to 1 or more"):
            training_pairs(none, "gt", conflict="implicit")
        for split in TARGETS:
            pd.testing.assert_frame_equal(getattr(more, split), getattr(one, split))


SWAP, NO_TARGETS, LEFT = {"target": "helpful"}, dict.fromkeys(TARGETS), "usable pairs are left for"
ALONE = {"n_helpful": 0, "conflicts": ["none"]}
MANY, SPOILT = {"helpful": rows("helpful", 12)}, {"gt": [{"chosen": [{"role": "user"}], "rejected": "a"}] * 30}
WHY = "30 rows were dropped: messages must have role and content, [^;]*$"
EXPECTED = r"expected gt\.\*, w2s\.\*, test\.\*, helpful\*\.\*.* harmless\.\* / train\.\* .*"
MISSING = [  # files, parameters, message
    *(({}, {f"n_{s}": 7}, f"n_{s} = 7: only 6 {LEFT} {s} of 6 rows in {s}.jsonl; lower n_{s}$") for s in SPLITS),
    ({}, SWAP | {"n_gt": 7}, "n_gt = 7: only .* are left for gt of 6 rows in helpful.jsonl"),
    (MANY, SWAP | {"n_helpful": 25}, f"n_helpful = 25: only 24 {LEFT} harmless of 24 rows in gt.jsonl"),
    (SPOILT, {"bad_pairs": "drop"}, f"n_gt = 2: only 0 {LEFT} gt of 30 rows in gt.jsonl; {WHY}"),
    ({}, {"data_dir": "b"}, "data_dir = 'b': data already names a folder; leave data_dir out$"),
    ({}, {"data": "poket"}, r"data = 'poket': no such folder as .*poket; did you mean 'pocket'\?$"),
    ({}, {"data": "hh", "data_dir": "no"}, "data_dir = 'no': no such folder as .*no; give the folder that holds gt"),
    ({}, {"data": "cai"}, "W2S_DATA_DIR = 'absent': no such folder"),
    ({}, {"data": "pocket", "n_validation": 999999}, "n_validation = 999999: .*; lower n_validation$"),
    (
        NOTHING | {"gt": rows("gt", 2), "notes": []},
        {},
        f"/.*: no file for test, w2s; {EXPECTED}; found gt.jsonl, notes.jsonl$",
    ),
    *((NOTHING, values, "/.*: no file for test, gt, w2s; .*found nothing$") for values in ({}, ALONE)),
    ({"helpful": None}, {}, r"/.*: no file for helpful \(n_helpful = 2; 0 goes without\)"),
    *(
        ({"helpful": None}, SWAP | more, r"/.*: no file for test, gt, w2s; expected helpful\*\.\*")
        for more in ({}, ALONE)
    ),
    (NO_TARGETS, SWAP, r"/.*: no file for harmless \(n_helpful = 2; 0 goes without\); expected helpful"),
]


@pytest.mark.parametrize(("files", "values", "message"), MISSING)
def test_what_is_too_few_or_absent_is_named(tmp_path, monkeypatch, files, values, message):
    monkeypatch.setenv("W2S_DATA_DIR", "absent")
    with pytest.raises(DataError if message.startswith("/") else ParameterError, match=f"^{message}"):
        load(params(**({"data": full(tmp_path, **files)} | values)))


def test_single_turn_is_the_filter_of_hh_and_not_of_your_own_folder(tmp_path):
    odd = [hh(SEVERAL_TURNS), hh("a", rejected_question=SEVERAL_TURNS), hh("d", "good\n\nHuman: more")]
    full(tmp_path, helpful=[*odd, *rows("helpful", 3)])
    row = row_of(load(params("hh", data_dir=str(tmp_path), bad_pairs="drop")), "helpful")
    assert (row.rows_read, row.multi_turn, row.prompt_mismatches, row.kept) == (6, 2, 1, 2)
    row = row_of(load(params(tmp_path, bad_pairs="drop", n_helpful=5)), "helpful")
    assert (row.multi_turn, row.prompt_mismatches, row.kept) == (0, 1, 5)


@pytest.fixture
def hub(monkeypatch):
    """A hub in the place of datasets.load_dataset; returns the list of what was asked of it."""
    asked = []

    def load_dataset(path, data_dir=None):
        asked.append((path, data_dir))
        several, asks = hh(SEVERAL_TURNS), [{"init_prompt": f"{i}"} for i in range(12)]
        content = {"train": [*rows(data_dir, 12), several], "test": [several, *rows(f"{data_dir} test", 2)]}
        if path == CAI:
            content = {"train_sft": [row | {"init_response": "harm", "revision_response": "sorry"} for row in asks]}
        return {part: datasets.Dataset.from_list(table) for part, table in content.items()}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_hh_from_the_hub_is_one_pool_of_single_turn_pairs(hub):
    data = checked(params("hh", n_gt=8))
    assert hub == [(HH, "harmless-base"), (HH, "helpful-base")]
    assert row_of(data, "gt")[["rows_read", "multi_turn"]].tolist() == [16, 2]
    assert row_of(data, "gt").source == f"{HH}/harmless-base/test + {HH}/harmless-base/train"
    assert data.source["read_from"] == "hub" and data.source["sizes"]["gt"] == 8
    assert all(len(digest) == 64 for digest in data.source["files"].values())
    hub.clear()
    load(params("hh", **ALONE))
    assert hub == [(HH, "harmless-base")]


def test_exchanged_roles_read_the_same_datasets_of_the_hub(hub):
    for data, conflict, chosen in (("hh", (HH, "harmless-base"), " good"), ("cai", (CAI, None), " sorry")):
        loaded = checked(params(data, target="helpful"))
        assert hub[-2:] == [(HH, "helpful-base"), conflict]
        assert row_of(loaded, "test").source.startswith(f"{HH}/helpful-base/")
        assert row_of(loaded, "helpful").source.startswith(conflict[0])
        assert set(loaded.helpful.dimension) == {"harmless"} and loaded.helpful.chosen.str.startswith(chosen).all()


def test_what_fails_on_the_hub_is_one_line_with_place_or_remedy(hub, monkeypatch):
    def fail(path, data_dir=None):
        raise ConnectionError("no route\nto the hub")

    bad = {"train": datasets.Dataset.from_list([hh("a"), hh("a", "same", "same")])}
    monkeypatch.setattr(datasets, "load_dataset", lambda path, data_dir: bad)
    with pytest.raises(DataError, match=f"^{HH}/harmless-base/train row 2: chosen and rejected are the same"):
        load(params("hh"))
    monkeypatch.setattr(datasets, "load_dataset", fail)
    start = rf"data = 'hh': no {HH} from the hub \(ConnectionError: no route to the hub\)"
    with pytest.raises(ParameterError, match=rf"\A{start}.*set data_dir.*W2S_DATA_DIR.*\Z"):
        load(params("hh"))


def test_local_folder_takes_the_place_of_the_hub(tmp_path, monkeypatch, hub):
    folder = str(full(tmp_path))
    for variable, data_dir in (("", folder), (folder, None), ("absent", folder)):
        monkeypatch.setenv("W2S_DATA_DIR", variable)
        data = load(params("hh", data_dir=data_dir))
        assert hub == [] and data.source["read_from"] == "folder"
        digest = hashlib.sha256((tmp_path / "gt.jsonl").read_bytes()).hexdigest()
        assert row_of(data, "gt").sha256 == data.source["files"]["gt.jsonl"] == digest


def test_import_is_light():
    code = "import sys, w2s.data; sys.exit(any(m in sys.modules for m in ('datasets', 'torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0


@needs_real_files
def test_audit_of_the_real_files_reports_the_known_figures():
    sizes = {"n_gt": 3000, "n_w2s": 3000, "n_helpful": 600, "n_validation": 400, "n_test": 3900}
    audit = checked(params("hh", data_dir=str(REAL), bad_pairs="drop", **sizes)).audit.set_index("split")
    assert audit.loc["test", ["shared_gt", "shared_w2s"]].tolist() == [84, 76]
    assert audit.loc["gt", ["shared_test", "shared_w2s"]].tolist() == [84, 81]
    counts = ["rows_read", "duplicate_prompts", "prompt_mismatches", "empty_responses"]
    known = {"gt": [4000, 85, 6, 4], "w2s": [4000, 90, 7, 5], "test": [4000, 89, 14, 8]}
    assert {split: audit.loc[split, counts].tolist() for split in known} == known
    # 2,354 helpful pairs, 700 of them with a single turn on one side at least.
    assert audit.loc["helpful", ["rows_read", "multi_turn"]].tolist() == [2354, 1654]
    content = (REAL / "harmless_test.jsonl").read_bytes()
    assert audit.sha256["test"] == hashlib.sha256(content).hexdigest()
    assert audit.source["validation"] == "harmless_train_gt.jsonl"
    assert audit.kept.to_dict() == {key.removeprefix("n_"): n for key, n in sizes.items()}
    first = next(i for i, line in enumerate(content.splitlines(), 1) if fault_of(line)[1])
    with pytest.raises(DataError, match=f"^harmless_test.jsonl line {first}: .*bad_pairs: drop$"):
        load(params("hh", data_dir=str(REAL)))
    exchanged = {"data_dir": str(REAL), "bad_pairs": "drop", "target": "helpful"}
    swapped = checked(params("hh", n_helpful=3000, **exchanged)).audit.set_index("split")
    assert swapped.rows_read[["gt", "helpful"]].tolist() == [2354, 12000]
    with pytest.raises(ParameterError, match="^n_test = 1280: only .* for test of 2354 rows in helpful_base_test"):
        load(params("hh", **exchanged, n_test=1280))


def test_pocket_world_has_the_sizes_asked_for_and_an_audit():
    sizes = {"gt": 40, "w2s": 30, "helpful": 20, "validation": 10, "test": 50}
    data = checked(params("pocket", **{f"n_{split}": n for split, n in sizes.items()}))
    assert data.audit.set_index("split").kept.to_dict() == sizes
    assert "substance" in data.gt and data.source["world"]["seed"] == 0


@pytest.fixture
def data(tmp_path):
    return load(params(full(tmp_path), n_w2s=4))


def weak_labels(data, value):
    return pd.DataFrame({"id": data.w2s.id, "weak_label": value})


def test_gold_labels_are_one_and_weak_labels_are_joined_by_id_and_not_by_position(data):
    pairs = training_pairs(data, "gt")
    assert pairs.label.tolist() == [1.0, 1.0] and pairs.target.tolist() == [True, True]
    assert pairs.id.tolist() == data.gt.id.tolist() and "label" not in data.gt
    labels = pd.DataFrame({"id": ["gt-00000", *data.w2s.id], "weak_label": [0.9, 0.0, 0.1, 0.2, 0.3]})
    for shuffled in (labels, labels.iloc[::-1], labels.sample(frac=1, random_state=1)):
        assert training_pairs(data, "w2s", shuffled).label.tolist() == [0.0, 0.1, 0.2, 0.3]


def test_implicit_alone_adds_the_helpful_pairs_with_gold_labels(data):
    for conflict in ("none", "explicit"):
        pairs = training_pairs(data, "w2s", weak_labels(data, 0.5), conflict)
        assert pairs.id.tolist() == data.w2s.id.tolist() and pairs.target.all()
    pairs = training_pairs(data, "w2s", weak_labels(data, 0.25), "implicit")
    assert pairs.id.tolist() == [*data.w2s.id, *data.helpful.id]
    assert pairs.label.tolist() == [0.25] * 4 + [1.0] * 2
    assert pairs.target.tolist() == [True] * 4 + [False] * 2 and pairs.target.dtype == bool
    assert training_pairs(data, "w2s", None, "implicit", n_helpful=1).target.tolist() == [True] * 4 + [False]
    kept = training_pairs(data, "w2s", None, "implicit", kept={"w2s-00001"})
    assert kept.id.tolist() == ["w2s-00001", "helpful-00000"]


REFUSED = [
    ("w2s", "none", lambda t: t.iloc[1:], "no weak_label for 1 of 4 pairs of w2s, such as w2s-00000"),
    ("w2s", "none", lambda t: t.assign(weak_label=float("nan")), "no weak_label for 4 of 4 pairs"),
    ("w2s", "none", lambda t: pd.concat([t, t.iloc[:1]]), "id w2s-00000 occurs twice; keep one label a pair"),
    ("w2s", "none", lambda t: t.assign(weak_label=1.5), r"weak_label 1.5 is no probability \(0 to 1\)"),
    ("test", "none", lambda t: None, "split 'test': choose one of gt, w2s, validation"),
    ("gt", "implict", lambda t: None, "conflict 'implict': did you mean 'implicit'"),
]


@pytest.mark.parametrize(("split", "conflict", "change", "message"), REFUSED)
def test_labels_that_do_not_fit_and_unknown_splits_and_conflicts_are_refused(data, split, conflict, change, message):
    with pytest.raises(ValueError, match=message):
        training_pairs(data, split, change(weak_labels(data, 0.5)), conflict)


class LetterTokenizer:
    """One token a letter, and a start token before each text: counts its calls."""

    calls, all_special_tokens = 0, ("<end>",)

    def __call__(self, texts, add_special_tokens, **_):
        self.calls += 1
        return {"input_ids": [[0] * (len(text) + add_special_tokens) for text in texts]}


def test_token_audit_by_hand(tmp_path):
    """Start token and prompt: 23 letters; the responses add 3, 2 and 41, 2. Truncation begins above max_length."""
    pairs = [hh("q", "aa", "a"), hh("b", "a" * 35 + "<end>", "a")]
    data = load(params(full(tmp_path, gt=pairs), **ALONE))
    tokenizer = LetterTokenizer()
    table = audit_tokens(data, tokenizer, max_length=30).set_index("split")
    expected = {"pairs": 2, "median_tokens": 25.5, "max_tokens": 64, "truncated_share": 0.5, "long_responses": 1}
    assert table.loc["gt"].to_dict() == expected | {"spelt_special": 1}
    assert table.loc["helpful", ["pairs", "max_tokens", "long_responses", "spelt_special"]].tolist() == [0, 0, 0, 0]
    assert tokenizer.calls == 16  # four batches for each of four splits, none for the empty one
    data = load(params(full(tmp_path, gt=[hh("q", "aa", "a"), hh("r", "a", "b")])))  # a text of 26, a response of 3
    for max_length, share, long in [(26, 0.0, 0), (25, 0.5, 0), (3, 1.0, 0), (2, 1.0, 1)]:
        row = audit_tokens(data, tokenizer, max_length).set_index("split").loc["gt"]
        assert (row.truncated_share, row.long_responses) == (share, long)


def test_token_audit_takes_a_hugging_face_tokenizer_and_counts_its_special_tokens_in_texts(data):
    words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"unk_token": "?", "eos_token": "gt", "model_max_length": 4}
    table = audit_tokens(data, PreTrainedTokenizerFast(tokenizer_object=words, **named), 6)
    # "Human:", split name, number, "Assistant:", "good", number
    assert table.max_tokens.tolist() == [6] * 5 and table.truncated_share.tolist() == [0.0] * 5
    assert table.set_index("split").spelt_special.to_dict() == dict(zip(SPLITS, (2, 0, 0, 0, 0), strict=True))


def test_fingerprint_of_a_table_changes_with_every_column_and_with_the_border_of_texts(data):
    moved = data.gt.assign(prompt=data.gt.prompt + " ", chosen=data.gt.chosen.str[1:])
    assert (moved.prompt + moved.chosen).equals(data.gt.prompt + data.gt.chosen)
    changed = [data.gt.assign(**{column: [data.gt[column][0], "x"]}) for column in PAIR_COLUMNS]
    assert len({table_fingerprint(table) for table in (data.gt, data.gt.copy(), moved, *changed)}) == 7
