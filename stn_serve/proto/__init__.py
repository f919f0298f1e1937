"""The typed image API and the code generated from it."""
