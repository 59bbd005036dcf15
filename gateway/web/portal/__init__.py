"""The portal: server-made pages for people; no script but for wallets and passkeys."""
