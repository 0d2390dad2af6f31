"""A chat template that writes the day gives the same ids on every day, and says which."""

import json
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

import offpref.pipeline.adding.template_days as template_days
from offpref.pipeline.adding.add import add_pairs, plan_add
from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.commands.main import main
from offpref.pipeline.pairs.pair_sets import PairSet
from offpref.pipeline.small_world import write_tokenizer
from offpref.pipeline.tokenization.chat_templates import NO_INPUTS
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

    prompt: list[dict[str, object]] = rows(1)[0]["prompt"]  # type: ignore[assignment]
    monday, tuesday = (
        Tokenizer(dated, DAYS[number]).template.text(prompt, NO_INPUTS, prompts=True)
        for number in (0, 1)
    )
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


NEAR = {(date.today() + timedelta(number)).weekday() for number in (-1, 0, 1)}
UNTOLD = next(
    day for number in range(7)
    if (day := date(2020, 1, 6) + timedelta(number)).weekday() not in {*NEAR, DAYS[1].weekday()}
)  # fmt: skip
"""A day whose name is not that of the days around today, which are tried."""


@pytest.mark.parametrize(
    ("made", "expected"),
    [(date.today(), date.today()), (UNTOLD, DAYS[1])],
    ids=["its day can be told", "its day is unknown"],
)
def test_a_version_of_a_former_rule_is_kept_and_its_day_used_where_it_can_be_told(
    store: Store, dated: Path, write_rows: Write, at: Callable[[int], None],
    made: date, expected: date,
) -> None:  # fmt: skip
    data = write_rows(rows(2))
    former = make_former(store, data, dated, made)
    num_before = store.read("sequences").num_rows
    at(1)

    found = [add(store, data, dated) for _ in range(2)]

    assert [is_new for _, is_new in found] == [True, False]
    assert json.loads(found[0][0].settings)["template_date"] == expected.isoformat()
    assert former in store.read("pair_sets")["pair_set_fingerprint"].to_pylist()
    has_same_ids = store.read("sequences").num_rows == num_before
    assert has_same_ids == (made == expected)


def make_former(store: Store, data: Path, folder: Path, day: date) -> str:
    """Add like a former version, whose spec has no day; returns the version's fingerprint."""
    import offpref.pipeline.adding.add as pairs

    def without_day(
        store: Store, spec: dict[str, object], *others: object, **more: object
    ) -> object:
        return {name: value for name, value in spec.items() if name != "tokenization"}

    class OnThatDay(Tokenizer):
        def __init__(self, folder: Path, given: date | None = None, **more: object) -> None:
            super().__init__(folder, given or day, **more)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "settled_spec", without_day)
        patch.setattr(pairs, "Tokenizer", OnThatDay)
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
        Tokenizer(tmp_path).template.text(
            [{"role": "user", "content": "a"}], NO_INPUTS, prompts=False
        )
