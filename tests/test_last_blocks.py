"""Models cut to their first blocks, .gguf files, training of the last blocks alone, the baseline without a teacher."""

import json
import re
import time
from threading import Thread

import architectures
import gguf
import numpy as np
import pandas as pd
import pytest
import torch
from architectures import LENGTH, PAIRS, load, objective_of, scores, spec_of, trained, values
from conftest import small_params

from w2s import models, zoo
from w2s.batches import PairTexts
from w2s.fast.lower import blocks_of
from w2s.losses import response_logps
from w2s.params import ParameterError, StudyParams
from w2s.runs import cluster, estimate, execute, states, store
from w2s.sources import hub
from w2s.spec import RunSpec
from w2s.study import Study

name, tokenizer = architectures.name, architectures.tokenizer  # fixtures


@torch.no_grad()
def test_a_cut_model_is_the_whole_one_without_its_other_blocks(name, tokenizer):
    cut, whole = f"{name}[:1]", load("reward", name)
    shorter = load("reward", cut)
    del blocks_of(whole)[1:]
    whole.body.config.num_hidden_layers = 1
    batch = PairTexts(PAIRS, tokenizer, LENGTH).batch(np.arange(len(PAIRS)))
    plain = [model(batch.input_ids, batch.attention_mask) for model in (whole, shorter)]
    torch.testing.assert_close(*plain)
    torch.testing.assert_close(values("reward", shorter, batch), plain[0], atol=1e-5, rtol=1e-5)  # packed
    assert models.n_parameters(cut) == sum(p.numel() for p in shorter.body.parameters()) < models.n_parameters(name)
    assert models.fingerprint(cut) != models.fingerprint(name) and models.load_tokenizer(cut).is_fast
    for blocks in (0, 3):
        with pytest.raises(ParameterError, match=r"it has 2 blocks; write \[:1\] to \[:2\]"):
            models.load_config(f"{name}[:{blocks}]")


def is_last_norm(part: str) -> bool:
    return part.split(".")[-2] in ("ln_f", "norm", "final_layer_norm") and not any(c.isdigit() for c in part)


@pytest.mark.parametrize("method", ["reward", "simpo"])
@pytest.mark.parametrize("last", [0, 1, 2])
def test_training_the_last_blocks_on_stored_states_is_training_them_on_texts(
    name, tokenizer, method, last, tmp_path, monkeypatch
):
    """Margins and gradients, of states computed at once and of stored ones, against the whole model."""

    def kind_of(trained_blocks):
        if method == "reward":
            model = models.RewardModel.load(name, trained_blocks=trained_blocks)
            model.unit.weight.data.mul_(10)
            return model
        return models.load_language_model(name, trained_blocks=trained_blocks)

    whole, at_once, stored = kind_of(None), kind_of(last), kind_of(last)
    spec = spec_of(method, name)
    lower = (stored.body if method == "reward" else stored.base_model).lower
    if lower.n:
        lower.find = states.States(tmp_path / "states", lower)
        lower.find.need(PairTexts(PAIRS, tokenizer, LENGTH, end=method != "reward"), spec)
    monkeypatch.setattr(lower, "run", None)  # which would compute them
    texts, objective = objective_of(spec, whole, tokenizer)
    batch, losses = texts.batch(np.arange(len(PAIRS))), []
    for model in (whole, at_once, stored):
        losses.append(objective(model, batch))
        losses[-1].sum().backward()
        np.testing.assert_allclose(scores(method, model, tokenizer), scores(method, whole, tokenizer), atol=1e-5)
    counted = sum(p.numel() for part, p in trained(at_once).items() if part != "unit.weight")
    norms = 0 if method == "reward" else sum(p.numel() for part, p in trained(at_once).items() if is_last_norm(part))
    assert counted == models.n_trained(name, method != "reward", blocks=last) + norms
    of_whole = trained(whole)
    for part, parameter in trained(stored).items():
        if parameter.grad is None or part.startswith("lm_head") or part.startswith("embed_out"):
            continue  # a head that shares its weights with the embeddings has their gradient too
        torch.testing.assert_close(parameter.grad, of_whole[part].grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(losses[0], losses[2], atol=1e-5, rtol=1e-5)


def test_who_finds_states_being_computed_computes_the_other_parts(tiny_models, tmp_path, monkeypatch, capfd):
    tokenizer, spec = models.load_tokenizer(tiny_models[0]), spec_of("reward", tiny_models[0])
    pairs = pd.concat([PAIRS.assign(prompt=PAIRS["prompt"] + str(i)) for i in range(40)])[:20].reset_index(drop=True)
    texts = PairTexts(pairs, tokenizer, LENGTH)
    lowers = [models.RewardModel.load(tiny_models[0], trained_blocks=1).body.lower for _ in range(2)]
    first, second = (states.States(tmp_path / "states", lower) for lower in lowers)
    compute, computed, helper = states.States._compute_part, {first: [], second: []}, []

    def watch(self, texts, index, *args):
        computed[self] += index
        if self is first and not helper:  # it holds the first part; another process needs the same states
            helper.append(Thread(target=second.need, args=(texts, spec)))
            helper[0].start()
            until = time.monotonic() + 60
            while len(first._lacks(texts)) > len(index) and time.monotonic() < until:
                time.sleep(0.01)
        compute(self, texts, index, *args)

    monkeypatch.setattr(states.States, "_compute_part", watch)
    first.need(texts, spec)
    helper[0].join(60)
    assert computed[first] == [0, 8, 16] and sorted(computed[second]) == [i for i in range(20) if i % 8]
    assert not first._lacks(texts) and not second._lacks(texts)
    assert "make of texts: 20 of 20 pairs" in capfd.readouterr().out


def of_last(tiny_models, folder, **changes) -> Study:
    return Study.open(small_params(tiny_models, folder, trained_blocks=1, **changes))


@pytest.mark.parametrize("method", ["reward", "dpo"])
def test_a_study_computes_what_is_below_once_and_saves_whole_models(method, tiny_models, tmp_path, capsys, monkeypatch):
    study = of_last(tiny_models, tmp_path, tokens_per_batch=1024, method=method, save_models=True, baseline=True)
    model, seeds = tiny_models[1], (0, 1)
    runs = [study.gold(model, seed) for seed in seeds]
    store.store_data(study.root, study.data)
    todo = cluster.pending(runs, study.root)
    more = estimate.states_to_make(todo, study.root)
    assert list(more) == [todo[0].name] and "2 wanted" in estimate.forecast(todo, 2, study.root, 1)
    monkeypatch.setattr(states, "EVERY", -1)
    cluster.run_all(runs[:1], study.root)
    said = capsys.readouterr().out
    assert re.search(r"what the first 1 blocks of tiny-16 make of texts: \d+ of 48 pairs, 1 s left", said)
    assert "make of texts: 48 of 48 pairs\n" in said
    folder = states.folder_of(runs[0], 1, study.root)
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(written) > 1 and not estimate.states_to_make(runs[1:], study.root)
    cluster.run_all(runs[1:], study.root)
    assert written == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    readable = [path.stat().st_mode & 0o044 == 0o044 for path in study.root.rglob("*") if path.suffix != ".lock"]
    assert all(readable)  # by every user of a shared cache
    saved = str(store.check_model(runs[0], study.root))
    again = execute.load_model(RunSpec(saved, "", "", "gt", 0, method=runs[0].method), study.root)
    tokenizer = models.load_tokenizer(saved)
    told = store.load_predictions(runs[0], study.root).query("split == 'test'")
    scored = execute.score(
        spec_of("reward" if method == "reward" else "simpo", saved, max_length=128),
        again,
        study.data.test,
        tokenizer,
        study.root,
    )
    column = "margin" if method == "reward" else "chosen_logp"
    np.testing.assert_allclose(told[column], scored[column], atol=2e-5)
    pretrained, kept = (
        load("sft" if method == "dpo" else "reward", model),
        load("sft" if method == "dpo" else "reward", saved),
    )
    first = [blocks_of(m)[0].state_dict() for m in (pretrained, kept)]
    last = [blocks_of(m)[1].state_dict() for m in (pretrained, kept)]
    assert all(torch.equal(first[0][key], first[1][key]) for key in first[0])
    assert not all(torch.equal(last[0][key], last[1][key]) for key in last[0])


def test_a_damaged_file_of_states_and_what_cannot_be_trained_say_so(tiny_models, tmp_path):
    study = of_last(tiny_models, tmp_path)
    run = study.gold(tiny_models[0], 0)
    store.store_data(study.root, study.data)
    cluster.run_all([run], study.root)
    file = next(states.folder_of(run, 1, study.root).glob("*.safetensors"))
    file.write_bytes(b"half a file")
    with pytest.raises(ParameterError, match=r"cannot be read .* delete it, and it is computed again"):
        cluster.run_all([study.gold(tiny_models[0], 1)], study.root)
    with pytest.raises(ParameterError, match=r"trained_blocks = 3: model .* has 2 blocks; lower it"):
        models.RewardModel.load(tiny_models[0], trained_blocks=3)
    for other in ({"lora": {"rank": 1, "alpha": 1.0}}, {"shards": 2, "device": "cpu"}):
        with pytest.raises(ParameterError, match="trained_blocks = 1: not together with"):
            StudyParams.check({"trained_blocks": 1, **other})


@pytest.mark.parametrize("method", ["reward", "dpo", "simpo"])
def test_the_baseline_is_the_mean_log_probability_of_the_pretrained_model(method, tiny_models, tmp_path):
    study = Study.open(small_params(tiny_models, tmp_path, baseline=True, method=method, conflicts=["none"]))
    table = cluster.results(study, study.direct_runs())
    assert set(table["role"]) == {"gold", "baseline", "student"}
    model, other = load("sft", tiny_models[1]), load("sft", tiny_models[2])
    rows = table[(table.role == "baseline") & (table.split == "test") & (table.model == "tiny-16")].set_index("id")
    texts = PairTexts(study.data.test, models.load_tokenizer(tiny_models[1]), 128, end=True)
    batch = texts.batch(np.arange(len(texts)))
    with torch.no_grad():
        logps = [
            response_logps(m(batch.input_ids).logits, batch.input_ids, batch.response_mask, True)
            for m in (model, other)
        ]
    chosen, rejected = logps[0].chunk(2)
    np.testing.assert_allclose(rows.loc[study.data.test["id"], "margin"], chosen - rejected, atol=1e-5)
    assert (
        study.baseline(tiny_models[1]).name
        == Study(study.params.model_copy(update={"seeds": [3]})).baseline(tiny_models[1]).name
    )
    with pytest.raises(ParameterError, match="baseline = True: it does not ship"):
        StudyParams.check({"frozen": True, "baseline": True})


def test_slices_in_names_tables_and_fetching_and_teachers_of_any_size(tiny_models, tmp_path):
    small, whole = f"{tiny_models[2]}[:1]", tiny_models[2]
    study = Study(small_params([small, whole], tmp_path, intermediate_models=[], model_pairs="all"))
    assert study.short(small) == "tiny-24[:1]"
    assert study.gold(small, 0).name.startswith("tiny-24-first1-on-gt-s0-")
    assert study.model_pairs == [(small, whole)]
    both = Study(study.params.model_copy(update={"weak_models": [whole, small], "strong_models": [whole]}))
    assert both.model_pairs == [(whole, whole), (small, whole)]
    assert Study(both.params.model_copy(update={"model_pairs": "larger"})).model_pairs == [(small, whole)]
    params = StudyParams(weak_models=["org/x[:2]", "org/x[:4]"], strong_models=["org/x@v1[:6]"], intermediate_models=[])
    assert [wanted.repo for wanted in hub.wanted(params)] == ["org/x", "org/x"]
    assert [wanted.revision for wanted in hub.wanted(params)] == [None, "v1"]


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """A llama of two blocks as a .gguf file, its products in eight bits; with the weights that it holds."""
    folder = tmp_path_factory.mktemp("gguf")
    bpe = json.loads(zoo.build_tokenizer().backend_tokenizer.to_str())["model"]
    words = sorted(bpe["vocab"], key=bpe["vocab"].get)
    writer = gguf.GGUFWriter(folder / "tiny.gguf", "llama")
    width, blocks, middle = 32, 2, 64
    writer.add_block_count(blocks)
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(middle)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_token_types([1] * len(words))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    rng, held = np.random.default_rng(0), {}
    shapes = {"token_embd": (len(words), width), "output_norm": (width,)}
    for i in range(blocks):
        shapes |= {f"blk.{i}.{part}": (width, width) for part in ("attn_q", "attn_k", "attn_v", "attn_output")}
        shapes |= {f"blk.{i}.ffn_{part}": (middle, width) for part in ("gate", "up")}
        shapes |= {f"blk.{i}.ffn_down": (width, middle), f"blk.{i}.attn_norm": (width,), f"blk.{i}.ffn_norm": (width,)}
    for part, shape in shapes.items():
        weights = rng.normal(size=shape).astype(np.float32)
        if weights.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            packed = gguf.quants.quantize(weights, kind)
            held[part] = gguf.quants.dequantize(packed, kind)
            writer.add_tensor(f"{part}.weight", packed, raw_dtype=kind)
        else:
            writer.add_tensor(f"{part}.weight", weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder, held


def test_a_gguf_file_is_turned_into_a_model_folder_once(quantized, capsys, monkeypatch, tmp_path):
    folder, held = quantized
    for way in (folder, folder / "tiny.gguf"):
        model = load("reward", str(way))
        np.testing.assert_allclose(model.body.embed_tokens.weight.detach(), held["token_embd"])
        np.testing.assert_allclose(model.body.layers[1].mlp.down_proj.weight.detach(), held["blk.1.ffn_down"])
    assert capsys.readouterr().out.count("turned into float32, once") == 1
    assert models.fingerprint(f"{folder}[:1]") == f"{models.fingerprint(str(folder / 'tiny.gguf'))}[:1]"
    assert load("reward", f"{folder}[:1]").body.config.num_hidden_layers == 1
    assert (
        hub.wanted(StudyParams(weak_models=[f"{folder}[:1]"], strong_models=[str(folder)], intermediate_models=[]))
        == []
    )
    (tmp_path / "two").mkdir()
    for part in "ab":
        (tmp_path / "two" / f"{part}.gguf").write_bytes(b"GGUF, but no more of it")
    with pytest.raises(ParameterError, match="holds 2 .gguf files; name one of them"):
        models.load_tokenizer(str(tmp_path / "two"))
    with pytest.raises(ParameterError, match="cannot be read as .gguf"):
        models.load_tokenizer(str(tmp_path / "two" / "a.gguf"))
