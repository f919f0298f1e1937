"""Networks built with spatial transformers."""
