-- How a Consent was signed, whether or not it went to the chain.
CREATE TABLE consent_signature (
  consent TEXT PRIMARY KEY,
  signer TEXT NOT NULL CHECK (signer IN ('wallet', 'custodial', 'passkey', 'attested')),
  address TEXT NOT NULL,
  user TEXT,                       -- in whose session
  signed_ms INTEGER NOT NULL
) WITHOUT ROWID;
-- The epoch a patient address is in on chain, where it is not the first.
CREATE TABLE patient_epoch (address TEXT PRIMARY KEY, epoch INTEGER NOT NULL) WITHOUT ROWID;
-- Requests for access. ``requester`` is a keyed hash; ``body`` is sealed, and goes once the request was brought to whom
-- it names, if there is such a patient: the one who asked is answered before anybody looks.
CREATE TABLE access_request (
  pk INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  requester INTEGER NOT NULL,
  asked_ms INTEGER NOT NULL,
  body BLOB,
  patient INTEGER,                 -- whom it named
  task TEXT                        -- the Task they found; NULL: an earlier request stands for it
);
CREATE INDEX access_request_requester ON access_request (requester, asked_ms);
CREATE INDEX access_request_waiting ON access_request (pk) WHERE body IS NOT NULL;
CREATE INDEX access_request_patient ON access_request (requester, patient) WHERE task IS NOT NULL;
CREATE INDEX access_request_asked ON access_request (asked_ms);
CREATE INDEX intent_failed ON intent (kind, pk) WHERE state = 'failed';
-- Permits in force whose time will run out.
CREATE INDEX provision_until ON provision (valid_until_ms) WHERE shown = 'final';
