"""Keep the tokens of a tokenizer in the store, so that SQL and the report show text without it."""

import pyarrow as pa

from offpref.pipeline.tokenization.tokenizer import Tokenizer
from offpref.stores.schema import VOCABULARY
from offpref.stores.store import Store


def keep_vocabulary(store: Store, tokenizer: Tokenizer) -> None:
    """Write a tokenizer's tokens once, and again in place of what a former rule wrote."""
    partition = tokenizer.spec.fingerprint
    rows = pa.table(list(tokenizer.vocabulary()), schema=VOCABULARY.schema)
    former = store.shards(VOCABULARY.name, partition)
    if former and store.read(VOCABULARY.name, partition).equals(rows):
        return
    store.write_spec({"kind": "tokenizer"} | tokenizer.spec.without_template())
    with store.batch() as batch:
        batch.add(VOCABULARY.name, partition, rows)
        batch.remove(former)
