"""Turn a checkpoint into a model repository entry, proven equal to PyTorch."""
