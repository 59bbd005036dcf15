"""The ledger room: what the gateway anchors, relays to and follows on the chain the hospitals share."""
