import gzip
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from stopping import send, start_until
from transformers import AutoModelForCausalLM

from offpref.pipeline.adding.add import add_pairs, plan_add
from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.scores.score import ScoreSummary, score
from offpref.pipeline.scores.settings import ScoreSettings
from offpref.pipeline.small_world import write_model, write_pairs
from offpref.stores.errors import ModelError, PairSetError, SourceError
from offpref.stores.maintenance.verify import verify_store
from offpref.stores.store import Store

OFFPREF = [str(Path(sys.executable).parent / "offpref")]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Sixty pairs of the small world."""
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, num_pairs=60, seed=1)
    return path


def run(store: Store, model: Path, data: Path, **options: object) -> ScoreSummary:
    added = {k: options.pop(k) for k in ("max_length", "truncation") if k in options}
    settings = AddSettings(
        data=(str(data),),
        pair_set="reviews",
        tokenizer=model,
        **added,  # type: ignore[arg-type]  # spelled out in each test
    )
    return score(store, ScoreSettings(model=model, data=settings, **options))  # type: ignore[arg-type]


def plain_scores(model: Path, store: Store, tokenizer: str) -> dict[bytes, np.ndarray]:
    """What transformers' own logits say of every sequence of the store, each run alone."""
    plain = AutoModelForCausalLM.from_pretrained(model)
    scores = {}
    for row in store.read("sequences", tokenizer).to_pylist():
        ids, start = torch.tensor([row["ids"]]), row["num_prompt_tokens"]
        with torch.no_grad():
            logps = plain(ids).logits[0].log_softmax(-1)
        labels = ids[0, start:, None]
        scores[row["sequence_key"]] = logps[start - 1 : -1].gather(-1, labels)[:, 0].numpy()
    return scores


def test_scores_are_those_of_the_plain_model(store: Store, model_dir: Path, pairs: Path) -> None:
    summary = run(store, model_dir, pairs)

    expected = plain_scores(model_dir, store, summary.pair_set.tokenizer)
    rows = store.read("logps", summary.scorer).to_pylist()
    assert len(rows) == len(expected) == summary.num_new > 100
    for row in rows:
        np.testing.assert_allclose(
            row["token_logps"], expected[row["sequence_key"]], rtol=0, atol=1e-5
        )


def test_second_run_computes_nothing(store: Store, model_dir: Path, pairs: Path) -> None:
    first = run(store, model_dir, pairs)
    before = store.digest("logps", first.scorer)

    second = run(store, model_dir, pairs)

    assert (second.num_new, second.num_cached) == (0, first.num_new)
    assert store.digest("logps", first.scorer) == before


def test_cached_run_imports_neither_torch_nor_transformers_and_reads_no_weights(
    store: Store, model_dir: Path, pairs: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(model_dir, tmp_path / "model"))
    run(store, model, pairs)
    code = (
        "import sys\n"
        "opened = []\n"
        "sys.addaudithook(lambda e, a: opened.append(str(a[0])) if e == 'open' else None)\n"
        "from offpref.pipeline.commands.main import main\n"
        "main(sys.argv[1:], standalone_mode=False)\n"
        "assert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules), sys.modules\n"
        "assert not [p for p in opened if p.endswith(('.safetensors', 'pairs.jsonl'))], opened\n"
    )
    arguments = ["score", str(store.path), "--data", str(pairs), "--pair-set", "reviews"]
    # The defaults of the command are those of a test's settings, but for the length.
    run(store, model, pairs, max_length=64)

    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--model", str(model)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "computed   nothing: no model was loaded" in done.stdout
    assert "known, nothing was read" in done.stdout


def test_only_unseen_sequences_are_computed(store: Store, model_dir: Path, tmp_path: Path) -> None:
    few, many = tmp_path / "few.jsonl", tmp_path / "many.jsonl"
    write_pairs(many, num_pairs=60, seed=1)
    few.write_text("".join(many.read_text().splitlines(keepends=True)[:20]))
    first = run(store, model_dir, few)

    second = run(store, model_dir, many)

    assert second.num_cached == first.num_new > 0
    assert second.num_new == second.num_sequences - first.num_new
    keys = [row["sequence_key"] for row in store.read("logps", second.scorer).to_pylist()]
    assert len(keys) == len(set(keys)) == second.num_sequences
    assert sum(shard.num_rows for shard in store.shards("logps", second.scorer)) == len(keys)


def test_another_model_precision_or_truncation_never_gets_old_values(
    store: Store, model_dir: Path, pairs: Path, tmp_path: Path
) -> None:
    first = run(store, model_dir, pairs)
    other = Path(shutil.copytree(model_dir, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"][0] += 0.5
    save_file(tensors, other / "model.safetensors")

    changed = run(store, other, pairs)
    coarse = run(store, model_dir, pairs, precision="bf16")
    cut = run(store, model_dir, pairs, max_length=14, truncation="keep-start")

    assert len({first.scorer, changed.scorer, coarse.scorer}) == 3
    assert changed.num_cached == coarse.num_cached == 0
    assert cut.scorer == first.scorer
    assert 0 < cut.num_new < cut.num_sequences  # a cut sequence is another, a short one the same
    old, new = (
        {r["sequence_key"]: r["token_logps"] for r in store.read("logps", s.scorer).to_pylist()}
        for s in (first, changed)
    )
    assert all(old[key] != new[key] for key in new)


def test_copied_model_and_renamed_data_reuse_every_score(
    store: Store, model_dir: Path, pairs: Path, tmp_path: Path
) -> None:
    first = run(store, model_dir, pairs)
    model = Path(shutil.copytree(model_dir, tmp_path / "elsewhere"))
    config = json.loads((model / "config.json").read_text()) | {"attention_dropout": 0.3}
    (model / "config.json").write_text(json.dumps(config))
    data = pairs.rename(pairs.with_name("moved.jsonl"))

    second = run(store, model, data)

    assert (second.scorer, second.num_new) == (first.scorer, 0)


def test_weights_that_give_no_numbers_are_refused(
    store: Store, model_dir: Path, pairs: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(model_dir, tmp_path / "broken"))
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][:] = float("nan")
    save_file(tensors, model / "model.safetensors")

    with pytest.raises(ModelError):
        run(store, model, pairs)

    assert not store.partitions("logps")


def test_tokenizer_of_another_vocabulary_is_refused_and_named(
    store: Store, model_dir: Path, pairs: Path, tmp_path: Path
) -> None:
    summary = run(store, model_dir, pairs)
    model = Path(shutil.copytree(model_dir, tmp_path / "other"))
    changed = json.loads((model / "tokenizer.json").read_text())
    words = changed["model"]["vocab"]
    words["film"], words["book"] = words["book"], words["film"]
    (model / "tokenizer.json").write_text(json.dumps(changed))

    with pytest.raises(ModelError, match=r"its vocabulary, algorithm differs; add the data with"):
        score(store, ScoreSettings(model=model, pair_set=str(summary.pair_set)))


def test_sequences_beyond_the_models_positions_are_refused(
    store: Store, model_dir: Path, tmp_path: Path
) -> None:
    data = tmp_path / "long.jsonl"
    row = {"prompt": "how was the film ?", "chosen": "good " * 80, "rejected": "bad"}
    data.write_text(json.dumps(row) + "\n")
    with pytest.raises(ModelError, match=r"at most 64 tokens, 1 of .* --max-length 64"):
        run(store, model_dir, data)


def test_template_of_another_model_is_refused_in_a_mixed_folder(
    store: Store, model_dir: Path, chat_dir: Path, tmp_path: Path
) -> None:
    data, other = tmp_path / "data", Path(shutil.copytree(model_dir, tmp_path / "other"))
    data.mkdir()
    messages = {
        "prompt": [{"role": "user", "content": "how was the film ?"}],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
    }
    (data / "a.jsonl").write_text(json.dumps(messages) + "\n")
    write_pairs(data / "b.jsonl", num_pairs=2, seed=0)  # texts come last
    added = AddSettings(data=(str(data),), pair_set="mixed", tokenizer=chat_dir)
    pair_set, _ = add_pairs(store, plan_add(store, added))
    (other / "chat_template.jinja").write_text("another")

    with pytest.raises(ModelError, match="its template differs"):
        score(store, ScoreSettings(model=other, pair_set=str(pair_set)))


def test_ids_beyond_the_models_vocabulary_are_refused(
    store: Store, model_dir: Path, tmp_path: Path
) -> None:
    small, data = tmp_path / "small", tmp_path / "pairs.jsonl"
    write_model(small, vocab_size=20, seed=0)
    write_pairs(data, num_pairs=4, seed=0)
    added = AddSettings(data=(str(data),), pair_set="p", tokenizer=model_dir)
    with pytest.raises(ModelError, match="token ids below its vocabulary of 20"):
        score(store, ScoreSettings(model=small, data=added))


def test_sharding_over_one_process_is_refused(store: Store, model_dir: Path, pairs: Path) -> None:
    with pytest.raises(ValueError, match="start several with torchrun"):
        run(store, model_dir, pairs, shard_model=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stories260k", "babyllama105"])
def test_real_scores_are_those_of_the_plain_model(name: str, store: Store, shared: Path) -> None:
    """Float32 on real text: both ways of computing round, and stay near float64 alike."""
    model, data = shared / "models" / name, store.path.parent / "hh.jsonl"
    with gzip.open(shared / "data/prefs/hh_harmless.jsonl.gz", "rt", encoding="utf-8") as file:
        data.write_text("".join(itertools.islice(file, 60)), encoding="utf-8")
    longest = {"stories260k": 512, "babyllama105": 256}[name]
    summary = run(store, model, data, max_length=longest)

    plain = plain_scores(model, store, summary.pair_set.tokenizer)
    rows = store.read("logps", summary.scorer).to_pylist()
    ours = np.concatenate([row["token_logps"] for row in rows])
    theirs = np.concatenate([plain[row["sequence_key"]] for row in rows])
    assert len(rows) >= 10
    assert np.abs(ours - theirs).mean() < 2e-6
    assert np.abs(ours - theirs).max() < 1e-4  # a token or two of thousands


def test_neither_pair_set_nor_store_are_clear(store: Store, model_dir: Path) -> None:
    with pytest.raises(PairSetError, match="there are: none"):
        score(store, ScoreSettings(model=model_dir, pair_set="helpful"))


def test_error_while_adding_reaches_the_caller(
    store: Store, model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "q"}\n')
    with pytest.raises(SourceError, match="got: question"):
        run(store, model_dir, tmp_path / "a.jsonl")


# Real processes.


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Path:
    """The random Llama with more layers: its scoring lasts long enough to be killed."""
    import transformers

    folder = tmp_path_factory.mktemp("slow")
    for path in model_dir.glob("token*"):
        shutil.copy(path, folder)
    config = transformers.LlamaConfig(
        vocab_size=80, hidden_size=128, intermediate_size=512, num_hidden_layers=6,
        num_attention_heads=4, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def many_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("many") / "pairs.jsonl"
    write_pairs(path, num_pairs=1500, seed=2)
    return path


@pytest.fixture(scope="module")
def unbroken(
    tmp_path_factory: pytest.TempPathFactory, slow_model: Path, many_pairs: Path
) -> tuple[str, int]:
    """Scorer and number of rows of a run that nobody interrupted."""
    store = Store.create(tmp_path_factory.mktemp("unbroken") / "store")
    summary = run(store, slow_model, many_pairs, max_length=64)
    return summary.scorer, summary.num_sequences


def score_command(store: Path, model: Path, data: Path) -> list[str]:
    arguments = ["score", str(store), "--data", str(data), "--pair-set", "reviews"]
    more = ["--model", str(model), "--commit-seconds", "0", "--max-batch-tokens", "1024"]
    return [*OFFPREF, *arguments, *more]


def start(store: Path, model: Path, data: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        score_command(store, model, data),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )  # fmt: skip


def num_scored(store: Path, scorer: str) -> int:
    if not (store / "STORE.json").exists():
        return 0
    return sum(shard.num_rows for shard in Store.open(store).shards("logps", scorer))


@pytest.mark.slow
def test_killed_run_goes_on_from_its_last_commit(
    tmp_path: Path, slow_model: Path, many_pairs: Path, unbroken: tuple[str, int]
) -> None:
    scorer, num_sequences = unbroken
    store = tmp_path / "store"
    for num_commits in (4, 5):  # the first ones are of the pairs
        before = num_scored(store, scorer)
        process = start_until(f"record-placed:{num_commits}", score_command(
            store, slow_model, many_pairs
        ))  # fmt: skip
        assert send(process, signal.SIGKILL)[0] == -signal.SIGKILL
        assert before < num_scored(store, scorer) < num_sequences, num_commits

    kept = num_scored(store, scorer)
    last = start(store, slow_model, many_pairs)
    out, err = last.communicate(timeout=200)

    assert last.returncode == 0, err
    assert f"sequences  {num_sequences:,}: {num_sequences - kept:,} new, {kept:,} cached" in out
    assert num_scored(store, scorer) == num_sequences
    assert verify_store(store).problems == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_interrupted_run_keeps_what_it_computed_and_says_so(
    tmp_path: Path, slow_model: Path, many_pairs: Path, unbroken: tuple[str, int],
    kind: signal.Signals, code: int, word: str,
) -> None:  # fmt: skip
    store = tmp_path / "store"
    command = score_command(store, slow_model, many_pairs)
    process = start_until("record-placed:4", command)
    before = num_scored(store, unbroken[0])

    found, said = send(process, kind)

    assert found == code
    assert said.startswith(word)
    assert said.count("\n") == 1
    assert before < num_scored(store, unbroken[0]) < unbroken[1]  # what was under way, too
    assert verify_store(store).problems == []


@pytest.mark.slow
@pytest.mark.parametrize("by_torchrun", [True, False], ids=["ranks", "strangers"])
def test_workers_share_the_work(
    by_torchrun: bool,
    tmp_path: Path,
    slow_model: Path,
    many_pairs: Path,
    unbroken: tuple[str, int],
) -> None:
    scorer, num_sequences = unbroken
    store = tmp_path / "store"
    ranks = [{"RANK": str(r), "WORLD_SIZE": "2"} if by_torchrun else {} for r in range(2)]
    workers = [start(store, slow_model, many_pairs, **rank) for rank in ranks]

    said = [worker.communicate(timeout=250) for worker in workers]

    assert [worker.returncode for worker in workers] == [0, 0], said
    rows = Store.open(store).read("logps", scorer)
    assert rows.num_rows == num_sequences
    # Computed twice at most: what a worker had under way when the other came by.
    assert num_scored(store, scorer) - num_sequences < num_sequences * 0.8  # on a busy machine too


@pytest.mark.slow
def test_sharded_model_under_torchrun_gives_the_scores_of_one_process(
    tmp_path: Path, model_dir: Path, pairs: Path
) -> None:
    alone = Store.create(tmp_path / "alone")
    summary = run(alone, model_dir, pairs, max_length=64)
    arguments = ["score", str(tmp_path / "store"), "--data", str(pairs), "--pair-set", "reviews"]
    offpref = Path(sys.executable).parent / "offpref"

    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port",
         "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--no-python", offpref,
         *arguments,
         "--model", str(model_dir), "--shard-model", "--device", "cpu"],
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr[-3000:]
    ours = Store.open(tmp_path / "store").read("logps", summary.scorer)
    theirs = alone.read("logps", summary.scorer)
    assert ours["sequence_key"] == theirs["sequence_key"]
    np.testing.assert_allclose(flat(ours), flat(theirs), rtol=0, atol=1e-6)


def flat(rows: pa.Table) -> np.ndarray:
    return rows["token_logps"].combine_chunks().values.to_numpy()
