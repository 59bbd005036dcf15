-- What is asked to be signed depends on the revoke-alls on their way, of any number of acts that are.
CREATE INDEX intent_revoking_all ON intent (pk) WHERE kind = 'revoke-all' AND state NOT IN ('final', 'failed');
-- Anybody may try to sign in with a wallet.
CREATE INDEX account_wallet ON account (wallet) WHERE wallet IS NOT NULL;
