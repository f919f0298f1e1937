"""`python -m stn_serve` is `stn`."""

from stn_serve.cli import main

main()
