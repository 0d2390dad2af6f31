"""Which pair sets of a store an older rule of tokenisation made, told from their specs alone."""

from offpref.stores.live import LiveStore

from .specs import RULE


def former_lines(store: LiveStore) -> list[str]:
    """Return a line for each version of an older rule whose name has none of the present one."""
    specs = {each: store.read_spec(each) for each in store.spec_fingerprints()}
    own = {each: spec for each, spec in specs.items() if spec.get("kind") == "pair_set"}
    present = {spec.get("name") for spec in own.values() if spec.get("tokenization", 1) == RULE}
    return [
        f"{spec.get('name')}@{each[:12]} was made by an older rule of tokenisation; it stays in "
        "use, and adding its data again makes a new version"
        for each, spec in own.items()
        if spec.get("name") not in present
    ]
