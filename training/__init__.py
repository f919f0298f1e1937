"""Train spatial transformer networks."""
