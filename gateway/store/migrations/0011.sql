-- Ways in. ``account`` is the proofed standing (who somebody is here); ``login`` is how a person comes in, and stands for
-- nobody until the head or the records office bound it to an account. An account may have several logins.
CREATE TABLE login (
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,       -- what is typed, folded
  shown TEXT NOT NULL,             -- the person's name as they gave it
  wanted TEXT NOT NULL,            -- the role asked for at sign-up, or given by the operator
  state TEXT NOT NULL CHECK (state IN ('waiting', 'verified', 'rejected', 'closed')),
  fhir_user TEXT,                  -- of the account, once verified
  matching BLOB,                   -- sealed: birth date and identifier, until decided
  reason TEXT,                     -- why rejected
  password TEXT,                   -- PHC string of Argon2id, with its parameters
  totp BLOB,                       -- sealed secret
  totp_on INTEGER NOT NULL DEFAULT 0,       -- a first code was shown
  totp_step INTEGER NOT NULL DEFAULT 0,     -- the time step of the last code taken: no code counts twice
  created_ms INTEGER NOT NULL,
  decided_ms INTEGER,
  decided_by TEXT                  -- fhirUser of who decided, or 'cli'
) WITHOUT ROWID;
CREATE INDEX login_user ON login (fhir_user) WHERE fhir_user IS NOT NULL;
CREATE INDEX login_waiting ON login (created_ms) WHERE state = 'waiting';

CREATE TABLE recovery_code (login TEXT NOT NULL, hash BLOB NOT NULL, used_ms INTEGER, PRIMARY KEY (login, hash)) WITHOUT ROWID;

CREATE TABLE passkey (
  id BLOB PRIMARY KEY,             -- the credential id
  login TEXT NOT NULL,
  public_key BLOB NOT NULL,        -- COSE
  counter INTEGER NOT NULL,
  name TEXT NOT NULL,
  created_ms INTEGER NOT NULL,
  used_ms INTEGER
) WITHOUT ROWID;
CREATE INDEX passkey_login ON passkey (login);

-- Who the hospital's own identity provider says it is.
CREATE TABLE upstream_identity (
  issuer TEXT NOT NULL, subject TEXT NOT NULL, login TEXT NOT NULL, created_ms INTEGER NOT NULL,
  PRIMARY KEY (issuer, subject)
) WITHOUT ROWID;
CREATE INDEX upstream_login ON upstream_identity (login);

-- Things used once: challenges of passkeys, nonces of wallets, states of the identity provider. ``bound``: keyed hash of
-- the browser's visit or session cookie, so that only who asked can answer.
CREATE TABLE ceremony (
  hash BLOB PRIMARY KEY,
  kind TEXT NOT NULL,
  bound BLOB NOT NULL,
  body BLOB NOT NULL,              -- sealed
  expires_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX ceremony_expiry ON ceremony (expires_ms);

CREATE TABLE session (
  hash BLOB PRIMARY KEY,           -- keyed hash of the cookie; the cookie is never stored
  id TEXT NOT NULL UNIQUE,
  login TEXT NOT NULL,
  methods TEXT NOT NULL,           -- space-separated amr: pwd otp hwk wallet oidc
  device TEXT NOT NULL,
  auth_time_ms INTEGER NOT NULL,
  seen_ms INTEGER NOT NULL,
  expires_ms INTEGER NOT NULL,
  ended_ms INTEGER
) WITHOUT ROWID;
CREATE INDEX session_login ON session (login);
CREATE INDEX session_expiry ON session (expires_ms);

-- Failed sign-ins: ``key`` is the keyed hash of a login, a known device or a source.
CREATE TABLE sign_in_failure (
  key BLOB PRIMARY KEY, failures INTEGER NOT NULL, last_ms INTEGER NOT NULL, until_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX sign_in_failure_last ON sign_in_failure (last_ms);
