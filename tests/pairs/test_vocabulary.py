"""The tokens of a tokenizer are in the store once, by the present rule."""

from pathlib import Path

import pyarrow as pa

from offpref.pipeline.adding.vocabulary import keep_vocabulary
from offpref.pipeline.tokenization.tokenizer import Tokenizer
from offpref.stores.query.catalog import open_catalog
from offpref.stores.schema import VOCABULARY
from offpref.stores.store import Store


def test_what_a_former_rule_wrote_is_replaced(store: Store, model_dir: Path) -> None:
    tokenizer = Tokenizer(model_dir)
    partition = tokenizer.spec.fingerprint
    ids, spelled, special = tokenizer.vocabulary()
    former = [ids, [b"wrong " + each for each in spelled], [False] * len(ids)]
    with store.batch() as batch:
        batch.add(VOCABULARY.name, partition, pa.table(former, schema=VOCABULARY.schema))
    store.refresh()

    keep_vocabulary(store, tokenizer)
    store.refresh()

    with open_catalog(store.path) as catalog:
        rows = list(catalog.answer("select id, bytes, is_special from vocabulary order by id").rows)
    assert [(i, bytes(text), is_special) for i, text, is_special in rows] == list(
        zip(ids, spelled, special, strict=True)
    )


def test_a_vocabulary_that_is_right_is_left_alone(store: Store, model_dir: Path) -> None:
    tokenizer = Tokenizer(model_dir)
    keep_vocabulary(store, tokenizer)
    store.refresh()
    before = [shard.name for shard in store.shards(VOCABULARY.name)]

    keep_vocabulary(store, tokenizer)
    store.refresh()

    assert [shard.name for shard in store.shards(VOCABULARY.name)] == before
