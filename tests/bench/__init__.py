"""Load through real HTTP on loopback, and the cost of each step of a write."""
