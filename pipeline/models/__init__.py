"""Language models: loaded, run on packed rows, fingerprinted, written as folders."""
