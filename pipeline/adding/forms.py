"""Find out how a source names its prompts and completions: the form of its rows.

    prompt, chosen, rejected        explicit pairs; of two lists of texts every pair of the grid
    chosen, rejected                implicit prompt: dialogues that part somewhere
    prompt, response_a, response_b, winner      compared pairs
    prompt, completion              demonstrations (chosen alone)
    prompt, completion, label       unpaired: true is chosen alone, false is rejected alone
    messages [, label]              a conversation whose last turn is the completion
    prompt, completions [, scores]  ranked lists
    prompt, completion, score       ranked lists: neighbouring rows of one prompt

Each of prompt and completion is a text, a list of messages, or a list of token ids. The spellings
are TRL's, and those of well-known data sets.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from offpref.stores.errors import SourceError
from offpref.stores.sources import columns_of, row_names, unreadable_reason

from .messages import held_in, messages_in

SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt", "prompt_ids", "prompt_input_ids", "question", "instruction", "query",
               "context"),
    "chosen": ("chosen", "chosen_ids", "chosen_input_ids", "chosen_response"),
    "rejected": ("rejected", "rejected_ids", "rejected_input_ids", "rejected_response"),
    "completion": ("completion", "completion_ids", "completion_input_ids", "response", "output",
                   "answer"),
    "completions": ("completions", "responses", "outputs", "answers", "candidates", "texts",
                    "text"),
    "label": ("label", "kto_tag"),
    "conversation": ("messages", "conversations", "conversation"),
    "winner": ("winner", "overall_preference"),
    "score": (),
    "system": ("system", "system_prompt"),
    "input": ("input",),
    "history": ("history",),
    "tools": ("tools",),
    "chat_template_kwargs": ("chat_template_kwargs",),
    "split": (),
    "weight": ("weight",),
}  # fmt: skip
COMPARED = (
    ("response_a", "response_b"), ("response_1", "response_2"), ("response1", "response2"),
    ("response 1", "response 2"), ("response_0", "response_1"), ("answer_a", "answer_b"),
    ("answer_0", "answer_1"), ("completion_a", "completion_b"), ("output_1", "output_2"),
    ("conversation_a", "conversation_b"), ("human_ref_a", "human_ref_b"),
)  # fmt: skip
"""Names of two completions, neither of which is the better one, in small letters."""
JUDGEMENTS = frozenset(
    {"winner", "overall_preference", "preference", "preference_strength", "label", "labels",
     "better_response_id", "choice"}
)  # fmt: skip
"""Columns that say which of two completions is better."""
VERDICTS = ("score", "rating", "reward", "rank", "labels", "is_safe", "is_correct", "preference")
"""Columns that say of a completion how good it is."""
SCORES = ("scores", "score", "ratings", "rewards", "ranks", "rank")
"""Columns with the scores of a list, in this order."""
MEMBER_TEXTS = ("response", "answer", "completion", "text", "output", "content", "value")
MEMBER_SCORES = ("score", "overall_score", "fine-grained_score", "rating", "reward", "rank")
"""Names in the objects of a list of completions."""
HELPFULNESS = "helpfulness"
SIGNED = ("overall_preference", "preference_strength")
"""Columns of HelpSteer, in which a negative number means the first completion."""
_SCORE_OF_ONE = re.compile(r"(score|rating|reward)s?_?[012ab]", re.IGNORECASE)
_RANK = re.compile(r"(^|_)rank(s|ing|ings)?$", re.IGNORECASE)
ALONGSIDE = ("system", "input", "history", "tools", "chat_template_kwargs", "split", "weight")
"""Parts that any form may have."""
OPTIONAL_LATER = ("weight", "system", "input", "history", "tools", "chat_template_kwargs")
NUM_JUDGED = 64  # values of a column from which it is told what it holds
NUM_LOOKED_AT = 256  # rows in which they are looked for before all are


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """How a source names its prompts and completions, and their type."""

    name: str
    """``pairs``, ``grid``, ``implicit pairs``, ``compared pairs``, ``implicit compared pairs``,
    ``demonstrations``, ``unpaired``, ``lists`` or ``scored rows``."""

    value: str
    """``text``, ``messages`` or ``ids``."""

    columns: Mapping[str, str]
    """The source's column for each part."""

    member: tuple[str, str | None] | None = None
    """Names of text and score in the objects of a list of completions; None for other lists."""

    is_signed: bool = False
    """Whether the winner's column holds signed numbers: a negative one means the first."""

    kept: tuple[str, ...] = ()
    """Columns that are kept beside the pairs."""

    def __str__(self) -> str:
        return f"{self.name} ({self.value}): {', '.join(self.columns.values())}"

    @property
    def is_ranked(self) -> bool:
        """Whether its scores are ranks, of which the lowest is the best."""
        score = self.member[1] if self.member else None
        return _RANK.search(score or self.columns.get("score", "")) is not None

    @property
    def is_list(self) -> bool:
        """Whether its rows make lists of completions, and no pairs."""
        return self.name in ("lists", "scored rows")


def find_form(
    rows: pa.Table,
    named: Mapping[str, str],
    *,
    kinds: Mapping[str, str] | None = None,
    as_messages: bool = False,
) -> Form:
    """Return the form of a source from its first rows.

    Args:
        rows: As `stores.sources.read_rows` yields them.
        named: Columns the user named, by part.
        kinds: What `row_names` returns of them; None if it was not asked yet.
        as_messages: Whether texts are turns, to be written with the chat template.

    Raises:
        SourceError: If the columns do not have a form that this version knows, or a column that was
            named is not there or has no use.
    """
    kinds = row_names(rows) if kinds is None else kinds
    if not kinds:
        reason = unreadable_reason(rows) or "found none"
        raise SourceError(f"expected JSON objects, {reason}")
    columns_named = [name for part, name in named.items() if part != "score"]  # may be a member's
    if unknown := sorted(name for name in columns_named if name not in kinds):
        raise SourceError(
            f"expected a column called {unknown[0]!r}, the source has: {', '.join(kinds)}"
        )
    found = {part: named[part] for part in SPELLINGS if part in named}
    for part, spellings in SPELLINGS.items():
        if part not in named and (known := [name for name in spellings if name in kinds]):
            found[part] = known[0]
    judge = _Judge(rows, kinds, named.values())
    form = _form(found, named, judge)
    columns = {part: found[part] for part in ALONGSIDE if part in found}
    columns = {p: n for p, n in columns.items() if n not in form.columns.values()}
    used = {**form.columns, **columns}
    _check_used(named, used, form)
    if as_messages and form.value != "text":
        raise SourceError(f"--apply-chat-template has no effect on {form.value}")
    if form.value == "text" and "prompt" in form.columns:
        _check_prompt(form, named, judge, as_messages=as_messages)
    value = "messages" if as_messages and form.value == "text" else form.value
    kept = tuple(name for name in kinds if name not in used.values())
    return replace(form, value=value, columns=used, kept=kept)


def _check_prompt(
    form: Form, named: Mapping[str, str], judge: "_Judge", *, as_messages: bool
) -> None:
    """Check that prompts of completions that are texts are texts, and no part of them.

    Raises:
        SourceError: If they are something else.
    """
    prompt = form.columns["prompt"]
    held = judge.holds(prompt)
    if held == "messages" and not as_messages:
        raise SourceError(
            f"{prompt}: messages before completions that are texts need --apply-chat-template"
        )
    if held == "listed":
        raise SourceError(f"{prompt}: expected texts or messages, got {_HELD[held]}")
    completions = [
        form.columns[p] for p in ("chosen", "rejected", "completion") if p in form.columns
    ]
    if (
        completions
        and "prompt" not in named
        and form.name != "grid"
        and judge.begin(completions, prompt)
    ):
        raise SourceError(
            f"{completions[0]}: every row begins with its {prompt}, which would come twice; cut it"
            f" off there, or say --prompt-column {prompt} if that is meant"
        )


class _Judge:
    """Tells what columns hold, from their first values."""

    def __init__(self, rows: pa.Table, kinds: Mapping[str, str], named: Iterable[str] = ()) -> None:
        self._rows, self.kinds, self._named = rows, kinds, frozenset(named)

    def first(self, name: str) -> list[object]:
        """Return the first values of a column that are not null, read from JSON."""
        found: list[object] = []
        for few in (self._rows.slice(0, NUM_LOOKED_AT), self._rows):
            taken = columns_of(few, [name])
            texts = taken[f"value/{name}"].to_pylist()
            types = taken[f"type/{name}"].to_pylist()
            found = [
                json.loads(text) if kind in ("ARRAY", "OBJECT") else text
                for text, kind in zip(texts, types, strict=True)
                if text is not None and kind not in (None, "NULL")
            ][:NUM_JUDGED]
            if len(found) == NUM_JUDGED or few.num_rows == self._rows.num_rows:
                break
        return found

    def holds(self, name: str) -> str:
        """Return text, messages, ids, texts, dialogues, objects or object, whatever is usual."""
        votes = [held_in(value) for value in self.first(name)]
        held = max(dict.fromkeys(votes), key=votes.count) if votes else "text"
        # A text may be a list: the user says so by naming its column.
        return "text" if held == "listed" and name in self._named else held

    def begin(self, names: Sequence[str], prompt: str) -> bool:
        """Whether the texts of some columns begin with their prompt in every row."""
        texts = columns_of(self._rows.slice(0, NUM_JUDGED), [*names, prompt])
        prompts = texts[f"value/{prompt}"].to_pylist()
        rows = zip(*(texts[f"value/{name}"].to_pylist() for name in names), strict=True)
        told = [
            (row, start) for row, start in zip(rows, prompts, strict=True) if start and all(row)
        ]
        return bool(told) and all(text.startswith(start) for row, start in told for text in row)


def _form(found: dict[str, str], named: Mapping[str, str], judge: _Judge) -> Form:
    """Return the form without what any form may have."""
    if "input" in found and "input" not in named and not {"prompt", "conversation"} & found.keys():
        found["prompt"] = found.pop("input")
    prompt = "prompt" if "prompt" in found else "conversation" if "conversation" in found else None
    if "chosen" in found and "rejected" in found:
        if "winner" in named:
            return _compared(found, found["chosen"], found["rejected"], judge)
        _check_preference(found, named, judge)
        return _pairs(found, prompt, judge)
    for part, other in (("chosen", "rejected"), ("rejected", "chosen")):
        if part in found and {"completion", "conversation"} & found.keys():
            raise SourceError(
                f"{found[part]}: expected a column with the {other} completion beside it; name it "
                f"with --{other}-column, the source has: {', '.join(judge.kinds)}"
            )
    if (two := _two_completions(judge.kinds)) is not None:
        return _compared(found, *two, judge)
    lists = found.get("completions")
    if prompt and lists and judge.holds(lists) in ("texts", "objects", "dialogues"):
        return _lists(found, prompt, judge)
    label = ("label",) if "label" in found else ()
    if "completion" in found and "completion" not in named and not label:
        _check_told(found, named, judge)
    if prompt == "prompt" and "completion" in found:
        if "score" in found or (not label and HELPFULNESS in judge.kinds):
            columns = _taken(found, ("prompt", "completion"))
            columns["score"] = found.get("score", HELPFULNESS)
            return Form(
                name="scored rows", value=_value(found["completion"], judge), columns=columns
            )
        name = "unpaired" if label else "demonstrations"
        columns = _taken(found, ("prompt", "completion", *label))
        return Form(name=name, value=_value(found["completion"], judge), columns=columns)
    if "conversation" in found and "completion" not in named:
        name = "unpaired" if label else "demonstrations"
        columns = _taken(found, ("conversation", *label))
        return Form(name=name, value="messages", columns=columns)
    raise SourceError(
        "expected columns prompt/chosen/rejected, chosen/rejected, prompt/completion[/label], "
        "messages[/label], prompt/completions/scores, or two responses and a winner, got: "
        f"{', '.join(judge.kinds)}; name them with --prompt-column, --chosen-column, "
        "--rejected-column, --completion-column, --label-column, --winner-column or --score-column"
    )


def _taken(found: Mapping[str, str], parts: Sequence[str]) -> dict[str, str]:
    return {part: found[part] for part in parts}


_HELD = {
    "texts": "lists of texts", "objects": "lists of objects", "object": "objects",
    "listed": "lists written as texts, such as pandas writes to CSV; write JSON lines or Parquet, "
    "or name the column if they are meant as texts",
}  # fmt: skip


def _value(name: str, judge: _Judge) -> str:
    held = judge.holds(name)
    if held in ("text", "messages", "ids"):
        return held
    raise SourceError(
        f"{name}: expected texts, messages or token ids, got {_HELD.get(held, 'something else')}"
    )


def _pairs(found: Mapping[str, str], prompt: str | None, judge: _Judge) -> Form:
    held = judge.holds(found["chosen"]), judge.holds(found["rejected"])
    if prompt and held == ("texts", "texts"):
        columns = _taken(found, (prompt, "chosen", "rejected"))
        return Form(name="grid", value="text", columns=columns)
    value = _value(found["chosen"], judge)
    if prompt == "prompt" and value == "messages" and judge.holds(found["prompt"]) == "text":
        begins = [_first_role(each) for each in judge.first(found["chosen"])]
        if begins and begins.count("assistant") <= len(begins) // 2:
            prompt = None  # the lists hold the whole conversations, the prompt among them
    if prompt is None:
        columns = _taken(found, ("chosen", "rejected"))
        return Form(name="implicit pairs", value=value, columns=columns)
    columns = _taken(found, (prompt, "chosen", "rejected"))
    return Form(name="pairs", value=value, columns=columns)


def _first_role(value: object) -> str:
    found = messages_in(value) if isinstance(value, str) else value
    first = found[0] if isinstance(found, list) and found else found
    if not isinstance(first, dict):
        return "assistant"
    role = str(first.get("role", first.get("from", "")))
    return "assistant" if role in ("assistant", "gpt") else role


def _two_completions(kinds: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the columns of two completions, neither of which is the better one, if any."""
    names = {name.lower(): name for name in reversed(list(kinds))}
    for first, second in COMPARED:
        if first in names and second in names:
            return names[first], names[second]
    return None


def _check_preference(found: Mapping[str, str], named: Mapping[str, str], judge: _Judge) -> None:
    """Check that no column says which of two named completions is better.

    Raises:
        SourceError: If one does, and the names do not say it themselves.
    """
    if not {"chosen", "rejected"} <= named.keys():
        return
    usual = {*SPELLINGS["chosen"], *SPELLINGS["rejected"]}
    judging = [n for n in judge.kinds if n.lower() in JUDGEMENTS and n not in found.values()]
    judging += [found["winner"]] if "winner" in found else []
    judging += [found["label"]] if "label" in found and "label" not in named else []
    if judging and not usual & {found["chosen"], found["rejected"]}:
        raise SourceError(
            f"{found['chosen']} and {found['rejected']}: {judging[0]!r} may say which is better; "
            f"name it with --winner-column, or call the columns chosen and rejected"
        )


def _check_told(found: Mapping[str, str], named: Mapping[str, str], judge: _Judge) -> None:
    """Check that demonstrations are no completions that a column finds good or bad.

    Raises:
        SourceError: If there is such a column, and the user did not name the completion's.
    """
    prompt = found.get("prompt")
    is_apart = prompt in ("instruction", "question") and "prompt" not in named
    if is_apart and "input" not in found and "context" in judge.kinds:
        raise SourceError(
            f"{prompt}: 'context' may belong to it; say --input-column context if it goes behind"
            f" it, or --prompt-column {prompt} if not"
        )
    verdicts = [name for name in judge.kinds if name.lower() in VERDICTS]
    if verdicts and "score" not in named:
        raise SourceError(
            f"{found['completion']}: {verdicts[0]!r} may say how good it is; name it with "
            f"--score-column or --label-column, or say --completion-column {found['completion']} "
            "for demonstrations"
        )


def _compared(found: dict[str, str], first: str, second: str, judge: _Judge) -> Form:
    better = {"winner": found["winner"]} if "winner" in found else _scores_of(first, second, judge)
    if better is None:
        raise SourceError(
            f"{first} and {second}: expected a column that says which is better; name it with "
            f"--winner-column, the source has: {', '.join(judge.kinds)}"
        )
    winner = better.get("winner", "")
    if _SCORE_OF_ONE.fullmatch(winner):
        raise SourceError(
            f"--winner-column {winner}: expected a column that says which of two is better, this "
            "is the score of one"
        )
    signs = [number for text in judge.first(winner) if (number := str(text)).startswith("-")]
    is_signed = bool(signs) or winner in SIGNED
    columns = {"chosen": first, "rejected": second, **better}
    value = _value(first, judge)
    prompt = "prompt" if "prompt" in found else "conversation" if "conversation" in found else None
    name = "compared pairs"
    if value == "messages" and (prompt is None or first.startswith("conversation")):
        name = "implicit compared pairs"
    elif prompt is None:
        raise SourceError(f"expected a column with the prompt of {first} and {second}")
    else:
        columns = {prompt: found[prompt], **columns}
    return Form(name=name, value=value, columns=columns, is_signed=is_signed)


def _scores_of(first: str, second: str, judge: _Judge) -> dict[str, str] | None:
    """Return the columns of the scores of two completions; None if there are none.

    They count only where no other column may say which is better.
    """
    if any(name.lower() in JUDGEMENTS for name in judge.kinds):
        return None
    scores = {"first_score": f"score_{first[-1]}", "second_score": f"score_{second[-1]}"}
    return scores if all(name in judge.kinds for name in scores.values()) else None


def _lists(found: Mapping[str, str], prompt: str, judge: _Judge) -> Form:
    columns = {prompt: found[prompt], "completions": found["completions"]}
    held = judge.holds(found["completions"])
    named = found.get("score")
    if held == "objects":
        member = _member(judge.first(found["completions"]), named)
        if member is None:
            raise SourceError(
                f"{found['completions']}: expected objects with a text, called one of "
                f"{', '.join(MEMBER_TEXTS)}"
            )
        text, score = member
        if score is not None:
            return Form(name="lists", value="text", columns=columns, member=(text, score))
        member = (text, None)
    else:
        member = None
    scores = [named] if named else [name for name in SCORES if name in judge.kinds]
    if not scores:
        raise SourceError(
            f"{found['completions']}: expected scores or ranks of the completions; name their "
            f"column with --score-column, the source has: {', '.join(judge.kinds)}"
        )
    columns["score"] = scores[0]
    value = "messages" if held == "dialogues" else "text"
    return Form(name="lists", value=value, columns=columns, member=member)


def _member(values: Sequence[object], named: str | None) -> tuple[str, str | None] | None:
    """Return how objects name their text and their score; None if they have no text."""
    members = [each for value in values if isinstance(value, list) for each in value]
    known = {name for each in members if isinstance(each, dict) for name in each}
    text = next((name for name in MEMBER_TEXTS if name in known), None)
    wanted = (named,) if named else MEMBER_SCORES
    score = next((name for name in wanted if name in known), None)
    return None if text is None else (text, score)


def _check_used(named: Mapping[str, str], used: Mapping[str, str], form: Form) -> None:
    """Check that every column that the user named is used."""
    in_members = form.member[1] if form.member else None
    for part, name in named.items():
        if part not in used and name not in (*used.values(), in_members):
            if part == "score" and name not in used.values():
                raise SourceError(f"expected scores called {name!r}, found none in the first rows")
            hint = "; --winner-column says which of two is better" if part == "label" else ""
            raise SourceError(f"--{part}-column {name} has no effect on {form.name}{hint}")


def unsettled(form: Form, kinds: Mapping[str, str]) -> list[str]:
    """Return the columns that hold no value, of rows of these kinds, and decide what rows mean."""
    decisive = [name for part, name in form.columns.items() if part not in ALONGSIDE]
    return [name for name in decisive if kinds.get(name, "NULL") == "NULL"]


def widened(form: Form, rows: pa.Table) -> Form:
    """Return the form of a source with columns that only appear in a later batch of its rows.

    Raises:
        SourceError: If labels first appear there: they would change what earlier rows mean.
    """
    kinds = row_names(rows)
    if form.name == "demonstrations" and "label" in kinds:
        first = rows["source_row"][0].as_py()
        raise SourceError(
            f"expected a label in every row or in none, got the first ones after row {first}"
        )
    new = {
        part: name
        for part in OPTIONAL_LATER
        if part not in form.columns
        for name in SPELLINGS[part]
        if name in kinds and name not in form.columns.values()
    }
    kept = tuple(n for n in dict.fromkeys([*form.kept, *kinds]) if n not in new.values())
    kept = tuple(name for name in kept if name not in form.columns.values())
    if not new and kept == form.kept:
        return form
    return replace(form, columns={**form.columns, **new}, kept=kept)
