"""Access: what a token may ask, what a patient permits, and the one decision over both. Pure."""
