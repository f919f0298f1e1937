"""`python -m stn_serve` is `stn`."""

from stn_serve.cli import main

if __name__ == "__main__":
    main()
