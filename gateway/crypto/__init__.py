"""Keys, sealing and keyed hashes. Start at ``root.py``, then ``keys.py`` and ``envelope.py``."""
