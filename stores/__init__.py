"""Files on disk: Parquet shards, commit records and specs, how they are written, read and asked."""
