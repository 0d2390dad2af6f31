"""The sequences of a pair set that is in the store, or that is being added meanwhile."""

import threading
import time
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from offpref.pipeline.adding.add import PlannedAdd, add_pairs, plan_add
from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.pairs.lists import sequence_keys_of
from offpref.pipeline.pairs.mismatched import fix_kl_pairs, mismatched_keys
from offpref.pipeline.pairs.pair_sets import PairSet, find_pair_set, pair_sets
from offpref.stores.store import Store


class _StoppedError(Exception):
    """Ends the adding where nobody waits for it any more; never leaves its thread."""


class Wanted:
    """The sequences to be scored: of a pair set that is there, or of one that is being added."""

    def __init__(
        self,
        store: Store,
        pair_set: str | None,
        data: AddSettings | None,
        *,
        is_adder: bool,
        with_kl_pairs: bool = False,
    ) -> None:
        self._store = store
        self._planned: PlannedAdd | None = None
        self._found: PairSet | None = None
        self._error: BaseException | None = None
        self._keys: pa.Array | None = None  # of the complete pair set
        self._thread: threading.Thread | None = None
        self._is_stopping = False
        self._is_adder = is_adder
        self._with_kl_pairs = with_kl_pairs
        if data is None:
            assert pair_set is not None  # the settings have one of them
            self._found = find_pair_set(store, pair_set)
            self.name, self.version = str(self._found), self._found.fingerprint
            self.tokenizer = self._found.tokenizer
        else:
            self._planned = plan_add(store, data)
            self.version, self.tokenizer = (
                self._planned.fingerprint,
                self._planned.tokenizer.fingerprint,
            )
            self.name = f"{data.pair_set}@{self.version[:12]}"
            self._found = self._complete()

    def look(self) -> bool:
        """Look into the store, and return whether all of the pair set is in it by now.

        Raises what went wrong in the thread that adds.
        """
        if self._error is not None:
            raise self._error
        if self._found is None and (self._thread is None or not self._thread.is_alive()):
            self._store.refresh()
            self._found = self._complete()
            if self._error is not None:
                raise self._error
        return self._found is not None and self._has_kl_pairs(self._found)

    def tokenizer_fields(self) -> tuple[dict[str, Any], str | None]:
        """Return the spec of the pair set's tokenizer, and the hash of the template it used."""
        if self._planned is not None:
            spec = self._planned.tokenizer
            return spec.without_template(), None
        settings = self._store.read_spec(self.version)
        # A template that the user gave is no model's own.
        is_own = self.pair_set().has_messages and "chat_template" not in settings
        template = settings.get("template") if is_own else None
        return self._store.read_spec(self.tokenizer), str(template) if template else None

    def begin(self) -> None:
        """Start adding, beside the caller, if there is anything to add."""
        if self._found is None and self._is_adder:
            self._thread = threading.Thread(target=self._add, name="add", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the adding at its next chunk and wait for that.

        A thread that still runs when the interpreter ends can abort the process from inside a
        library.
        """
        self._is_stopping = True
        if self._thread is not None:
            self._thread.join()

    def wait(self, seconds: float) -> None:
        """Wait for more sequences."""
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(seconds)
        else:
            time.sleep(seconds)

    @property
    def is_added(self) -> bool:
        """Whether this process added the pair set."""
        return self._thread is not None

    def pair_set(self) -> PairSet:
        """Return the complete pair set."""
        if self._found is None:
            raise AssertionError("the pair set is not complete yet")
        return self._found

    def wanted(self) -> pa.Array:
        """Return the keys of the pair set's sequences that are in the store by now."""
        if self._keys is not None:
            return self._keys
        is_all = self._found is not None and self._has_kl_pairs(self._found)
        keys = sequence_keys_of(self._store, self.version, tokenizer=self.tokenizer)
        if is_all and self._with_kl_pairs:
            mismatched = mismatched_keys(self._store, self.pair_set())
            keys = pc.unique(pa.chunked_array([keys, mismatched]))
        if is_all:
            self._keys = keys
        return keys

    def _has_kl_pairs(self, found: PairSet) -> bool:
        """Whether the mismatched sequences are there, if wanted; the adder sees to it."""
        if not self._with_kl_pairs:
            return True
        if self._is_adder:
            fix_kl_pairs(self._store, found)
            return True
        self._store.refresh()
        return len(mismatched_keys(self._store, found)) > 0

    def _complete(self) -> PairSet | None:
        found = [each for each in pair_sets(self._store) if each.fingerprint == self.version]
        return found[0] if found else None

    def _add(self) -> None:
        try:
            if self._planned is None:
                raise AssertionError("nothing was planned")
            # A store of its own: the caller's is not to be used from two threads.
            add_pairs(Store.open(self._store.path), self._planned, self._go_on)
        except _StoppedError:
            return
        except BaseException as error:  # handed to the thread that asks next
            self._error = error

    def _go_on(self, num_rows: int) -> None:
        if self._is_stopping:
            raise _StoppedError
