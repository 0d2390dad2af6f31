"""Stage three: views, named questions and their answers, in DuckDB."""
