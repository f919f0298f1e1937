"""The servers that `benchmarks.serving` measures: one file for each says how it is installed, configured and asked."""
