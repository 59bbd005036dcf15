"""The embedded chain: web3's EVM tester engine (py-evm) on a durable SQLite store, spoken to as JSON-RPC.

Owns a whole one-node development and single-hospital network, run as a process of its own
(``python -m gateway.ledger.devchain``); refuses everything but JSON-RPC as a way in, so that geth, anvil or Besu can
take its place. One block per transaction, or per group that waits; final at once; it never reorganises.

    accounts.py   the genesis accounts' keys, a 0600 file
    store.py      py-evm's database over SQLite, one transaction per block
    evm.py        the py-evm chain: genesis, mining, reading, calling
    pool.py       transactions that wait for their turn
    node.py       pool + evm + clock behind one lock: what an Ethereum node does
    shapes.py     values <-> JSON as https://ethereum.github.io/execution-apis/ has them
    rpc.py        the method table and JSON-RPC 2.0
    http.py       the loopback door
"""
