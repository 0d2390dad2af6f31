"""A chat template that writes the day gives the same ids on every day, and says which."""

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
from click.testing import CliRunner

import offpref.pipeline.pairs.template_days as template_days
from offpref.pipeline.commands.main import main
from offpref.pipeline.pairs.add import add_pairs, plan_add
from offpref.pipeline.pairs.pair_sets import PairSet
from offpref.pipeline.pairs.settings import AddSettings
from offpref.pipeline.small_world import write_tokenizer
from offpref.pipeline.tokenization.tokenizer import Tokenizer
from offpref.stores.errors import ModelError
from offpref.stores.store import Store

Write = Callable[..., Path]
TEMPLATE = (
    "{{ strftime_now('%A') }} {% for message in messages %}<s> {{ message['content'] }} </s>"
    "{% endfor %}{% if add_generation_prompt %}<s> {% endif %}"
)
DAYS = {0: date(2026, 11, 30), 1: date(2026, 12, 1), 2: date(2026, 12, 2)}
WORDS = ("film", "book", "song")


def rows(count: int) -> list[dict[str, object]]:
    return [
        {
            "prompt": [{"role": "user", "content": f"how was the {word} ?"}],
            "chosen": [{"role": "assistant", "content": "good"}],
            "rejected": [{"role": "assistant", "content": "bad"}],
        }
        for word in WORDS[:count]
    ]


@pytest.fixture(scope="module")
def dated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with a token for each day of the week, which its template writes."""
    folder = tmp_path_factory.mktemp("dated")
    write_tokenizer(folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    for word in ("Monday", "Tuesday", "Wednesday", *"0123456789"):
        vocabulary[word] = len(vocabulary)
    path.write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set the clock."""

    def turn(number: int) -> None:
        class Clock(date):
            @classmethod
            def today(cls) -> date:
                return DAYS[number]

        monkeypatch.setattr(template_days, "date", Clock)

    return turn


def add(
    store: Store, data: Path, folder: Path, day: date | None = None, name: str = "p"
) -> tuple[PairSet, bool]:
    settings = AddSettings(
        data=(str(data),), pair_set=name, tokenizer=folder, template_date=day, eval_fraction=0.5
    )
    found = add_pairs(store, plan_add(store, settings))
    store.refresh()
    return found


def test_rows_keep_their_ids_on_another_day(
    store: Store, dated: Path, write_rows: Write, at: Callable[[int], None]
) -> None:
    at(0)
    first, _ = add(store, write_rows(rows(2), "monday.jsonl"), dated)
    at(1)
    again, is_new = add(store, write_rows(rows(2), "monday.jsonl"), dated)
    more, _ = add(store, write_rows(rows(3), "tuesday.jsonl"), dated)

    assert (again, is_new) == (first, False)
    assert json.loads(first.settings)["template_date"] == "2026-11-30"
    assert json.loads(more.settings)["template_date"] == "2026-11-30"
    assert store.read("sequences", first.tokenizer).num_rows == 6  # of three rows, not of five


def test_another_pair_set_is_of_its_own_day(
    store: Store, dated: Path, write_rows: Write, at: Callable[[int], None]
) -> None:
    data = write_rows(rows(1))
    at(0)
    first, _ = add(store, data, dated)
    at(1)
    second, _ = add(store, data, dated, name="q")

    monday, tuesday = (Tokenizer(dated, DAYS[number]).render(
        rows(1)[0]["prompt"], rows(1)[0]["chosen"])[0] for number in (0, 1))  # type: ignore[arg-type]  # fmt: skip
    ids = [row["ids"] for row in store.read("sequences", first.tokenizer).to_pylist()]
    heads = {tuple(each[:1]) for each in ids}
    expected = Tokenizer(dated).rendered_prompt_ids([monday, tuesday])
    assert heads == {tuple(each[:1]) for each in expected}
    assert len(heads) == 2
    assert json.loads(second.settings)["template_date"] == "2026-12-01"


def test_a_day_that_is_asked_for_is_a_version_of_its_own(
    store: Store, dated: Path, write_rows: Write, at: Callable[[int], None]
) -> None:
    data = write_rows(rows(1))
    at(0)
    first, _ = add(store, data, dated)

    other, is_new = add(store, data, dated, DAYS[2])
    back, _ = add(store, data, dated, DAYS[0])

    assert is_new
    assert other.fingerprint != first.fingerprint == back.fingerprint


def test_a_former_version_is_known_if_its_day_can_be_told(
    store: Store, dated: Path, write_rows: Write
) -> None:
    data = write_rows(rows(2))
    former = make_former(store, data, dated, date.today())

    again, is_new = add(store, data, dated)
    other, _ = add(store, write_rows(rows(3), "more.jsonl"), dated)

    assert (again.fingerprint, is_new) == (former, False)
    assert json.loads(other.settings)["template_date"] == date.today().isoformat()


def test_a_former_version_of_an_unknown_day_is_made_again_and_kept(
    store: Store, dated: Path, write_rows: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(rows(2))
    former = make_former(store, data, dated, date(2020, 1, 7))

    found = [add(store, data, dated) for _ in range(2)]

    assert [is_new for _, is_new in found] == [True, False]
    assert found[0][0].fingerprint != former
    assert capsys.readouterr().err.count("did not keep the day") == 1
    fingerprints = store.read("pair_sets")["pair_set_fingerprint"].to_pylist()
    assert former in fingerprints


def make_former(store: Store, data: Path, folder: Path, day: date) -> str:
    """Add like the former version, whose spec has no day; returns the version's fingerprint."""
    import offpref.pipeline.pairs.add as pairs

    class OnThatDay(Tokenizer):
        def __init__(self, folder: Path, given: date | None = None) -> None:
            super().__init__(folder, given or day)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "settled_spec", lambda store, spec, *others, **more: spec)
        patch.setattr(pairs, "Tokenizer", OnThatDay)
        patch.setattr(pairs, "remember_right", lambda store, found: None)
        return add(store, data, folder)[0].fingerprint


def test_texts_have_no_day(store: Store, dated: Path, write_rows: Write) -> None:
    data = write_rows([{"prompt": "how ?", "chosen": "good", "rejected": "bad"}])

    found, _ = add(store, data, dated)

    assert "template_date" not in json.loads(found.settings)
    with pytest.raises(ValueError, match="template_date has no effect"):
        add(store, data, dated, DAYS[0])


def test_a_day_that_nothing_asks_for_is_an_error(
    tmp_path: Path, chat_dir: Path, write_rows: Write
) -> None:
    words = [
        "add", str(tmp_path / "store"), "--data", str(write_rows(rows(1))), "--pair-set", "p",
        "--tokenizer", str(chat_dir), "--template-date",
    ]  # fmt: skip
    unused = CliRunner().invoke(main, [*words, "2026-11-30"])
    wrong = CliRunner().invoke(main, [*words, "30.11.2026"])

    assert (unused.exit_code, wrong.exit_code) == (2, 2)
    assert "template_date has no effect" in unused.output
    assert "expected a day" in wrong.output or "must be a day as YYYY-MM-DD" in wrong.output


def test_a_form_that_is_not_written_out_is_an_error(dated: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{% set f = '%A' %}{{ strftime_now(f) }}")

    with pytest.raises(ModelError, match="a form that is not written out"):
        Tokenizer(tmp_path).render(rows(1)[0]["prompt"], [])  # type: ignore[arg-type]
