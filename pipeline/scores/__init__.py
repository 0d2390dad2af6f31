"""Stage one: what the reference says of every sequence, once."""
