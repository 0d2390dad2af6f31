import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer, GPT2Tokenizer

from offpref.pipeline.tokenization.chat_templates import NO_INPUTS
from offpref.pipeline.tokenization.tokenizer import Tokenizer, tokenizer_spec
from offpref.stores.errors import ModelError
from offpref.stores.store import Store

TEXTS = ["Once upon a time, there was a cat.", " and  it ran", "", "naïve \U0001f600 x"]


@pytest.fixture(scope="session")
def gpt2_dir(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2's byte-level tokenizer, which puts no token before a prompt."""
    folder = tmp_path_factory.mktemp("gpt2")
    (folder / "vocab.json").write_bytes((shared / "data/tok/encoder.json").read_bytes())
    (folder / "merges.txt").write_bytes((shared / "data/tok/vocab.bpe").read_bytes())
    GPT2Tokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["stories260k", "babyllama105"])
def test_prompts_begin_with_bos_where_the_tokenizer_adds_it(name: str, shared: Path) -> None:
    ours = Tokenizer(shared / "models" / name)
    theirs = AutoTokenizer.from_pretrained(shared / "models" / name)

    prompts = ours.prompt_ids(TEXTS)

    assert prompts == [theirs(text).input_ids for text in TEXTS]
    assert prompts[2] == [1]


def test_prompt_without_ids_gets_the_token_that_begins_a_text(gpt2_dir: Path) -> None:
    tokenizer = Tokenizer(gpt2_dir)
    assert tokenizer.prompt_ids(["", "Hello world"]) == [[50256], [15496, 995]]
    assert tokenizer.completion_ids(["Hello<|endoftext|>", "Hello"]) == [[15496, 50256]] * 2


def test_gpt2_agrees_with_golden_tokenisations(gpt2_dir: Path, shared: Path) -> None:
    folder = shared / "data/tok"
    texts = (folder / "ggml-vocab-gpt-2.gguf.inp").read_text(encoding="utf-8")
    golden = (folder / "ggml-vocab-gpt-2.gguf.out").read_text().splitlines()
    cases = texts.split("\n__ggml_vocab_test__\n")

    ids = Tokenizer(gpt2_dir).rendered_completion_ids(cases[: len(golden)])

    assert len(golden) > 30
    assert ids == [[int(i) for i in line.split()] for line in golden]


def test_messages_without_a_template_are_a_clear_error(model_dir: Path) -> None:
    with pytest.raises(ModelError, match=r"no chat template; add one .* chat_template\.jinja"):
        Tokenizer(model_dir).template.text(
            [{"role": "user", "content": "a"}], NO_INPUTS, prompts=True
        )


@pytest.mark.parametrize("name", ["stories260k", "gpt2"])
def test_merges_are_those_of_joint_tokenisation(
    name: str, shared: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue("gpt2_dir") if name == "gpt2" else shared / "models" / name
    tokenizer = Tokenizer(folder)
    joint = AutoTokenizer.from_pretrained(folder)
    prompts = [
        "Once upon a ti",
        "Human:",
        "the end of a much longer prompt than the window is, hel",
    ]
    completions = ["me there was", " no", "lo and then goes on and on for more words than it needs"]

    firsts = [ids[0] for ids in tokenizer.completion_ids(completions)]
    merged = tokenizer.merges(prompts, tokenizer.tail_ids(prompts), completions, firsts)

    apart = [joint(p, add_special_tokens=False).input_ids for p in prompts]
    both = [
        joint(p + c, add_special_tokens=False).input_ids
        for p, c in zip(prompts, completions, strict=True)
    ]
    assert merged == [x[: len(y)] != y for x, y in zip(both, apart, strict=True)]
    assert merged == [True, False, True]


def test_saving_a_tokenizer_again_keeps_its_fingerprint(model_dir: Path, tmp_path: Path) -> None:
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(tmp_path)
    assert Tokenizer(tmp_path).spec == Tokenizer(model_dir).spec


def test_spec_names_what_differs(model_dir: Path, chat_dir: Path, tmp_path: Path) -> None:
    for path in model_dir.glob("token*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    changed = json.loads((tmp_path / "tokenizer.json").read_text())
    words = changed["model"]["vocab"]
    words["film"], words["book"] = words["book"], words["film"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(changed))

    ours, theirs = Tokenizer(model_dir).spec, Tokenizer(tmp_path).spec

    assert ours.vocabulary != theirs.vocabulary
    assert ours.fingerprint != theirs.fingerprint
    assert ours.eos_token_id == theirs.eos_token_id
    assert Tokenizer(chat_dir).spec.fingerprint == ours.fingerprint  # texts do not see a template


def test_spec_is_remembered_until_a_file_changes(
    store: Store, model_dir: Path, tmp_path: Path
) -> None:
    for path in model_dir.glob("token*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = tokenizer_spec(tmp_path, store)
    changed = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"eos_token": "<pad>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(changed))

    after = tokenizer_spec(tmp_path, store)

    assert (before.eos_token_id, after.eos_token_id) == (2, 0)


@pytest.mark.parametrize("name", ["stories260k", "gpt2"])
def test_vocabulary_spells_every_text(
    name: str, shared: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue("gpt2_dir") if name == "gpt2" else shared / "models" / name
    tokenizer = Tokenizer(folder)
    ids, spellings, special = tokenizer.vocabulary()

    text = "naïve cats \U0001f600 ran."
    spelled = b"".join(spellings[i] for i in tokenizer.rendered_completion_ids([text])[0])

    assert ids == list(range(len(ids)))
    assert spelled.decode().lstrip(" ") == text
    assert special[tokenizer.eos_token_id or 0]


def test_missing_tokenizer_is_a_clear_error(tmp_path: Path, store: Store) -> None:
    with pytest.raises(ModelError, match="found no folder"):
        Tokenizer(tmp_path / "no")
    with pytest.raises(ModelError, match="found no file of one"):
        tokenizer_spec(tmp_path, store)


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_option_that_splits_special_tokens_counts_and_its_default_does_not(
    chat_dir: Path, tmp_path: Path, store: Store
) -> None:
    plain = tokenizer_spec(chat_dir, store)
    copy = Path(shutil.copytree(chat_dir, tmp_path / "copy"))
    change_config(copy, split_special_tokens=False)
    default = tokenizer_spec(copy, store)
    change_config(copy, split_special_tokens=True)

    split = tokenizer_spec(copy, store)

    assert Tokenizer(copy).completion_ids(["good</s>"]) != Tokenizer(chat_dir).completion_ids(
        ["good</s>"]
    )
    assert default.fingerprint == plain.fingerprint != split.fingerprint


def test_a_token_that_the_template_writes_by_name_counts(
    chat_dir: Path, tmp_path: Path, store: Store
) -> None:
    copy = Path(shutil.copytree(chat_dir, tmp_path / "copy"))
    change_config(copy, pad_token="film")
    assert tokenizer_spec(copy, store).template == tokenizer_spec(chat_dir, store).template

    for folder in (copy, other := Path(shutil.copytree(copy, tmp_path / "other"))):
        (folder / "chat_template.jinja").write_text("{{ pad_token }}")
    change_config(other, pad_token="book")

    assert tokenizer_spec(copy, store).template != tokenizer_spec(other, store).template
