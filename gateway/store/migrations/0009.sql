-- The authorization server for apps. Secrets (client secrets, handles, codes, refresh tokens) are kept as keyed hashes.

-- How a client authenticates, and what an app registers. Everything issued hangs on state 'approved' and closed_ms NULL.
ALTER TABLE client ADD COLUMN auth TEXT NOT NULL DEFAULT 'private_key_jwt'
  CHECK (auth IN ('none', 'client_secret_basic', 'private_key_jwt'));
ALTER TABLE client ADD COLUMN secret BLOB;                        -- keyed hash; of client_secret_basic alone
ALTER TABLE client ADD COLUMN redirect_uris TEXT NOT NULL DEFAULT '';   -- between spaces, compared exactly
ALTER TABLE client ADD COLUMN grant_types TEXT NOT NULL DEFAULT '';     -- between spaces; empty: those of its kind
ALTER TABLE client ADD COLUMN launch_uri TEXT;
ALTER TABLE client ADD COLUMN state TEXT NOT NULL DEFAULT 'approved' CHECK (state IN ('approved', 'pending', 'rejected'));
ALTER TABLE client ADD COLUMN metadata TEXT NOT NULL DEFAULT '{}';      -- JSON in RFC 7591's words, shown and not obeyed

-- What a browser brought to /oauth/authorize, validated, until its person decided.
CREATE TABLE authorization_request (
  hash BLOB PRIMARY KEY,
  client TEXT NOT NULL,
  scope TEXT NOT NULL,             -- what of it the client may have
  v1 INTEGER NOT NULL,             -- asked in v1 words, so answered in them
  redirect_uri TEXT NOT NULL, state TEXT NOT NULL, nonce TEXT,
  challenge TEXT NOT NULL,         -- S256
  launch TEXT,                     -- launch.id
  prompt TEXT NOT NULL, max_age_s INTEGER,
  created_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL, used_ms INTEGER
) WITHOUT ROWID;
CREATE INDEX authorization_request_expiry ON authorization_request (expires_ms);

-- What a person let an app do. Codes, refresh tokens and access tokens hang on it and end with it.
CREATE TABLE authorization (
  id TEXT PRIMARY KEY,
  client TEXT NOT NULL,
  user TEXT NOT NULL,
  session TEXT NOT NULL,           -- the portal session it was given in
  scope TEXT NOT NULL, v1 INTEGER NOT NULL,
  patient TEXT, encounter TEXT,    -- Patient/1, Encounter/1
  purpose TEXT NOT NULL, reason TEXT,
  access TEXT CHECK (access IN ('online', 'offline')),   -- NULL: no refresh token
  consent TEXT,                    -- the Consent an offline app's access rests on
  launch TEXT NOT NULL,            -- JSON of the launch context beside patient and encounter
  nonce TEXT, auth_time_ms INTEGER NOT NULL,
  created_ms INTEGER NOT NULL, used_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL, revoked_ms INTEGER
) WITHOUT ROWID;
CREATE INDEX authorization_user ON authorization (user);
CREATE INDEX authorization_session ON authorization (session);
CREATE INDEX authorization_consent ON authorization (consent) WHERE consent IS NOT NULL;
CREATE INDEX authorization_expiry ON authorization (expires_ms) WHERE revoked_ms IS NULL;
CREATE INDEX authorization_revoked ON authorization (revoked_ms) WHERE revoked_ms IS NOT NULL;

CREATE TABLE authorization_code (
  hash BLOB PRIMARY KEY,
  authorization TEXT NOT NULL,
  redirect_uri TEXT NOT NULL, challenge TEXT NOT NULL,
  expires_ms INTEGER NOT NULL, used_ms INTEGER
) WITHOUT ROWID;
CREATE INDEX authorization_code_of ON authorization_code (authorization);

-- Of each authorization one row is unused: the newest. A used one that comes again gives a thief away.
CREATE TABLE refresh_token (
  hash BLOB PRIMARY KEY,
  authorization TEXT NOT NULL,
  issued_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL, used_ms INTEGER
) WITHOUT ROWID;
CREATE INDEX refresh_token_of ON refresh_token (authorization);

ALTER TABLE token ADD COLUMN authorization TEXT;
ALTER TABLE token ADD COLUMN told TEXT;   -- the scope in the words the client was told; NULL: as in scope
CREATE INDEX token_authorization ON token (authorization) WHERE authorization IS NOT NULL;

-- RSA keys that sign id_tokens, sealed under the hospital's id-token secret.
CREATE TABLE signing_key (kid TEXT PRIMARY KEY, sealed BLOB NOT NULL, created_ms INTEGER NOT NULL) WITHOUT ROWID;
