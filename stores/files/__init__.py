"""The files of a store: written whole or not at all, verified before they are used."""
