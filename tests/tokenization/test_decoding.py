"""Ids of prompt and completion decode to prompt and completion, whatever the tokenizer."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizer_kinds import EXACT, KINDS, write_kind
from transformers import AutoTokenizer

from offpref.pipeline.tokenization.anchors import AnchoredEncoder
from offpref.pipeline.tokenization.tokenizer import Tokenizer

PROMPTS = ["Once upon a time", "Human: say 1", "It is (", "She said:", "hello\n", "two "]
COMPLETIONS = [
    " little girl", "It is four.", "\n\nShe said", "(yes)", "42", "'s time", ". It is", "-", "  a",
    "a", "I am sorry.\n", "1", "!", "\n", "caf\u00e9", "\u65e5\u672c",
]  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kind(tmp_path_factory.mktemp("kind"), kind)


def test_ids_decode_to_prompt_and_completion(kind: str, folder: Path) -> None:
    if kind not in EXACT:
        pytest.skip("it loses spaces and capitals")
    ours, theirs = Tokenizer(folder), AutoTokenizer.from_pretrained(folder)

    for prompt, ids in zip(PROMPTS, ours.prompt_ids(PROMPTS), strict=True):
        for text, own in zip(COMPLETIONS, ours.completion_ids(COMPLETIONS), strict=True):
            whole = theirs.decode(ids + own, clean_up_tokenization_spaces=False)
            # What it puts before a whole text is its own; nothing is put before a completion.
            assert whole.removeprefix(" ") == prompt + text + "</s>", (prompt, text)


def test_ids_are_those_of_joint_tokenisation_where_the_boundary_is_clean(folder: Path) -> None:
    """TRL tokenises prompt and completion together, and cuts where the prompt's ids end."""
    ours, theirs = Tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    prompt = "Once upon a time,"
    own_ids = ours.prompt_ids([prompt])[0]
    joint = [theirs(prompt + text, add_special_tokens=False).input_ids for text in COMPLETIONS]
    prompts = [prompt] * len(COMPLETIONS)

    ids = ours.completion_ids(COMPLETIONS)
    merged = ours.merges(prompts, ours.tail_ids(prompts), COMPLETIONS, [own[0] for own in ids])

    num_clean = 0
    for whole, own, crosses in zip(joint, ids, merged, strict=True):
        if not crosses:
            assert [*whole, ours.eos_token_id] == own_ids + own
            num_clean += 1
    assert num_clean > len(COMPLETIONS) // 2


def test_a_tokenizer_that_adds_nothing_keeps_its_ids(kind: str, folder: Path) -> None:
    ours, theirs = Tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    adds = kind not in ("byte-level", "metaspace never", "character", "wordpiece")

    alone = [theirs(text, add_special_tokens=False).input_ids for text in COMPLETIONS]

    same = [
        own[:-1] == plain
        for own, plain in zip(ours.completion_ids(COMPLETIONS), alone, strict=True)
    ]
    assert adds or all(same)
    assert same[1] != adds


def test_ids_of_a_completion_do_not_depend_on_what_is_tokenised_beside_it(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    together = tokenizer.completion_ids(COMPLETIONS)
    assert together == [tokenizer.completion_ids([text])[0] for text in COMPLETIONS]


def test_an_anchor_whose_ids_change_is_not_taken() -> None:
    """Of an imaginary tokenizer that merges a colon with what follows, the next anchor counts."""
    words = {"\n": [1], ":": [2], "a": [3], "1": [4], ".": [5]}

    def encode(texts: list[str]) -> list[list[int]]:
        return [[9] if text.startswith(("\n", ":")) and len(text) > 1 else
                words.get(text, [*words.get(text[:1], [7]), *([8] if len(text) > 1 else [])])
                for text in texts]  # fmt: skip

    encoder = AnchoredEncoder(encode, lambda ids: b" x")  # type: ignore[arg-type]
    assert encoder.anchor("It") == "a"


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("wordpiece", "It is four.", "characters that the tokenizer normalises"),
        ("wordpiece", "(yes)", "spaces that the tokenizer adds or drops"),
        ("character", "Z", "characters that have no token"),
        ("metaspace always", "I am</s>\n", "spaces beside special tokens"),
        ("byte-level", "I am</s>\n", None),
    ],
)
def test_what_does_not_decode_has_a_reason(
    kind: str, text: str, reason: str | None, tmp_path: Path
) -> None:
    tokenizer = Tokenizer(write_kind(tmp_path, kind))
    ids = tokenizer.rendered_completion_ids([text])[0]
    assert tokenizer.difference(ids, text, is_prompt=False) == reason


@pytest.mark.parametrize("name", ["stories260k", "babyllama105"])
def test_real_tokenizers_decode_to_their_text(name: str, shared: Path) -> None:
    folder = shared / "models" / name
    ours, theirs = Tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    texts = [" little girl named Lily.", "It is four.", "she", "."]
    prompt = "Once upon a time, there was a"

    own_ids = ours.prompt_ids([prompt])[0]

    for text, ids in zip(texts, ours.completion_ids(texts), strict=True):
        whole = theirs.decode(own_ids[1:] + ids[:-1], clean_up_tokenization_spaces=False)
        assert whole.lstrip() == prompt + text


def test_a_prompt_that_begins_with_bos_gets_no_second_one(shared: Path) -> None:
    tokenizer = Tokenizer(shared / "models/stories260k")
    plain, written = tokenizer.prompt_ids(["Once", "<s>Once"])
    assert plain[0] == tokenizer.bos_token_id
    assert written.count(tokenizer.bos_token_id) == 1


def test_vocabulary_spells_added_tokens_as_they_are(tmp_path: Path) -> None:
    folder = write_kind(tmp_path, "byte-level")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["caf\u00e9"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|x|>"]})
    tokenizer.save_pretrained(folder)
    added = {text: tokenizer.convert_tokens_to_ids(text) for text in ("caf\u00e9", "<|x|>")}

    ids, spelled, special = Tokenizer(folder).vocabulary()

    table = {
        i: (text, is_special) for i, text, is_special in zip(ids, spelled, special, strict=True)
    }
    assert table[added["caf\u00e9"]] == ("caf\u00e9".encode(), False)
    assert table[added["<|x|>"]] == (b"<|x|>", True)


def test_a_token_that_is_special_in_the_tokenizers_file_alone_is_special(tmp_path: Path) -> None:
    folder = write_kind(tmp_path, "byte-level")
    content = json.loads((folder / "tokenizer.json").read_text())
    number = len(content["model"]["vocab"])
    content["added_tokens"].append(
        {"id": number, "content": "<|im_start|>", "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False, "special": True}
    )  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content))

    ids, _, special = Tokenizer(folder).vocabulary()

    assert dict(zip(ids, special, strict=True))[number]


def test_options_that_change_ids_change_the_spec(shared: Path, tmp_path: Path) -> None:
    """Of a tokenizer that adds a beginning-of-sequence token, and of one that is told not to."""
    folder = Path(shutil.copytree(shared / "models/stories260k", tmp_path / "copy"))
    before = Tokenizer(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(content))

    after = Tokenizer(folder)

    if before.prompt_ids(["a"]) != after.prompt_ids(["a"]):
        assert before.spec != after.spec
