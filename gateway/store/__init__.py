"""This node's truth and its disposable index: journal, blocks, search rows."""
