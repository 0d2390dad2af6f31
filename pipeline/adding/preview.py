"""Show the first rows of data as they will be scored, token by token, without writing anything."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from itertools import islice

from offpref.pipeline.pairs.sequences import Sequence
from offpref.pipeline.tokenization.chat_templates import find_template
from offpref.pipeline.tokenization.tokenizer import Tokenizer
from offpref.stores.errors import SourceError
from offpref.stores.sources import source_files

from .encoding import Encoder
from .examples import Examples
from .mixtures import read_shares
from .reading import read_sources
from .settings import AddSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenPiece:
    """A token, and the role of the turn that it belongs to; None in a prompt and between turns."""

    text: str
    role: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewedPart:
    """A prompt or a completion as tokens."""

    name: str
    """``prompt``, ``chosen`` or ``rejected``; of a list ``completion`` with its score."""
    tokens: tuple[TokenPiece, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewedRow:
    """An example of a source: its parts, or why it cannot be used."""

    file: str
    row: int
    form: str
    problem: str | None
    parts: tuple[PreviewedPart, ...]
    findings: tuple[str, ...]
    """What `add` counts of it, such as ids that do not decode to their text."""


def preview_rows(settings: AddSettings, num_rows: int) -> Iterator[PreviewedRow]:
    """Yield the first examples of the data.

    Args:
        settings: As for adding; a template that asks for the date gets the one given, or today's.
        num_rows: How many.

    Raises:
        SourceError: If the data cannot be read, or its columns have no known form.
        ModelError: If the tokenizer or the template cannot be loaded.
    """
    if read_shares(settings.data) is not None:
        raise SourceError("--preview shows data; a mixture refers to pair sets")
    given = settings.chat_template
    tokenizer = Tokenizer(
        settings.tokenizer, settings.template_date or date.today(),
        chat_template=None if given is None else find_template(given),
        arguments=settings.template_arguments,
    )  # fmt: skip
    tokenizer.template.check_arguments()
    files = [file for address in settings.data for file in source_files(address)]
    encoder = Encoder(tokenizer, max_length=settings.max_length, truncation=settings.truncation)

    def rows() -> Iterator[PreviewedRow]:
        for examples, number in read_sources(files, settings):
            few = examples.first(num_rows)
            chosen = encoder.sequences(few, "chosen")
            rejected = encoder.sequences(few, "rejected")
            for i in range(len(few.problem)):
                yield _row(tokenizer, few, i, files[number].address, chosen, rejected)

    yield from islice(rows(), num_rows)


def _row(
    tokenizer: Tokenizer,
    examples: Examples,
    i: int,
    file: str,
    chosen: dict[int, Sequence],
    rejected: dict[int, Sequence],
) -> PreviewedRow:
    parts: list[PreviewedPart] = []
    findings: dict[str, None] = {}
    problem = examples.problem[i]
    sides = {"chosen": chosen.get(i), "rejected": rejected.get(i)}
    if examples.form.is_list:
        sides = {f"score {examples.score[i]}": chosen.get(i)}
    for name, each in sides.items():
        if problem is not None or each is None:
            continue
        if not parts:
            prompt = each.ids[: each.num_prompt_tokens]
            tokens = tuple(TokenPiece(text=text, role=None) for text in _texts(tokenizer, prompt))
            parts.append(PreviewedPart(name="prompt", tokens=tokens))
        parts.append(PreviewedPart(name=name, tokens=_completion(tokenizer, each)))
        findings |= dict.fromkeys(each.findings)
    return PreviewedRow(
        file=file, row=examples.source_row[i], form=str(examples.form), problem=problem,
        parts=tuple(parts), findings=tuple(findings),
    )  # fmt: skip


def _completion(tokenizer: Tokenizer, each: Sequence) -> tuple[TokenPiece, ...]:
    texts = _texts(tokenizer, each.ids[each.num_prompt_tokens :])
    roles: list[str | None] = [None if each.spans else "assistant"] * len(texts)
    for span in each.spans:
        roles[span.start : span.end] = [span.role] * (span.end - span.start)
    return tuple(TokenPiece(text=text, role=role) for text, role in zip(texts, roles, strict=True))


def _texts(tokenizer: Tokenizer, ids: Iterable[int]) -> list[str]:
    """Return what each token spells; a part of a character as its bytes."""
    table = tokenizer.token_bytes.table
    found = []
    for i in ids:
        try:
            found.append(table[int(i)].decode())
        except UnicodeDecodeError:
            found.append("".join(f"<{byte:02X}>" for byte in table[int(i)]))
    return found
