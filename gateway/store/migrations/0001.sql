-- Rows of the journal (append-only), the blocks, the disposable index, and what access needs beside them.
-- Times are epoch milliseconds UTC. ``patient`` columns hold patient.pk.

CREATE TABLE setting (name TEXT PRIMARY KEY, value) WITHOUT ROWID;

-- Bumped by every revocation, local or seen on chain; read in the same statement as the token.
CREATE TABLE decision_seq (one INTEGER PRIMARY KEY CHECK (one = 1), value INTEGER NOT NULL);
INSERT INTO decision_seq VALUES (1, 1);

CREATE TABLE patient (pk INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE);

-- seq is the commit order; a snapshot at S sees seq <= S AND (superseded IS NULL OR superseded > S).
CREATE TABLE version (
  seq INTEGER PRIMARY KEY,
  type TEXT NOT NULL,
  id TEXT NOT NULL,
  vid INTEGER NOT NULL,
  superseded INTEGER,
  deleted INTEGER NOT NULL,
  updated_ms INTEGER NOT NULL,
  patient INTEGER,                 -- the first home patient, NULL when the record is about none
  others INTEGER NOT NULL,         -- how many further home patients stand in version_patient
  client TEXT NOT NULL,
  user TEXT,
  confidentiality INTEGER NOT NULL,
  labels INTEGER NOT NULL,         -- bits of mappings/access/labels.toml
  low_ms INTEGER,                  -- clinical data period
  high_ms INTEGER,
  categories BLOB NOT NULL,        -- keyed hashes of category tokens, 8 bytes each; also among index_hash
  keys BLOB NOT NULL,              -- key ids that derive the block's DEK
  digest BLOB NOT NULL,            -- sha2-256 of the envelope
  commitment BLOB NOT NULL,        -- sha256(content salt, stored bytes)
  batch INTEGER                    -- NULL: waits in the outbox
);
CREATE UNIQUE INDEX version_place ON version (type, id, vid);
CREATE INDEX version_type ON version (type, seq);
CREATE INDEX version_outbox ON version (seq) WHERE batch IS NULL;
CREATE INDEX version_batch ON version (batch) WHERE batch IS NOT NULL;
CREATE INDEX version_patient_type ON version (patient, type) WHERE superseded IS NULL;
CREATE INDEX version_superseded ON version (superseded) WHERE superseded IS NOT NULL;

CREATE TABLE version_patient (version INTEGER NOT NULL, patient INTEGER NOT NULL, PRIMARY KEY (version, patient)) WITHOUT ROWID;
CREATE INDEX version_patient_back ON version_patient (patient);

CREATE TABLE block (seq INTEGER PRIMARY KEY, digest BLOB NOT NULL, envelope BLOB NOT NULL);
CREATE UNIQUE INDEX block_digest ON block (digest);
CREATE TABLE pinned (digest BLOB PRIMARY KEY) WITHOUT ROWID;

CREATE TABLE index_hash (hash INTEGER NOT NULL, version INTEGER NOT NULL, PRIMARY KEY (hash, version)) WITHOUT ROWID;
CREATE TABLE index_number (key INTEGER NOT NULL, low REAL NOT NULL, high REAL NOT NULL, version INTEGER NOT NULL,
  unit INTEGER, unit_code INTEGER, PRIMARY KEY (key, low, version, high, unit));
CREATE TABLE index_date (key INTEGER NOT NULL, low_ms INTEGER NOT NULL, version INTEGER NOT NULL, high_ms INTEGER NOT NULL,
  PRIMARY KEY (key, low_ms, version, high_ms)) WITHOUT ROWID;
CREATE INDEX index_date_version ON index_date (version, key);
CREATE INDEX index_number_version ON index_number (version, key);
-- What a superseded version leaves behind is swept by (version); its hashes are found through this.
CREATE TABLE index_rows (version INTEGER PRIMARY KEY, hashes BLOB NOT NULL);

CREATE TABLE provision (
  pk INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,         -- Consent id and place in it
  consent TEXT NOT NULL,
  patient INTEGER NOT NULL,
  grantee INTEGER,                 -- keyed hash of the reference; NULL on a deny for everyone
  permit INTEGER NOT NULL,
  types TEXT,                      -- '|Observation|Condition|' or NULL for all
  categories INTEGER NOT NULL,     -- 1 when rows in provision_category restrict it
  confidentiality INTEGER NOT NULL,
  labels INTEGER NOT NULL,
  purposes TEXT,                   -- like types
  writes INTEGER NOT NULL,
  low_ms INTEGER, high_ms INTEGER,
  valid_from_ms INTEGER NOT NULL, valid_until_ms INTEGER NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('pending', 'final', 'revoked')),
  shown TEXT NOT NULL DEFAULT 'pending',   -- the state the Consent resource already says
  grant_id BLOB,
  address TEXT,
  epoch INTEGER,
  block INTEGER
);
CREATE INDEX provision_patient ON provision (patient, state);
CREATE INDEX provision_grantee ON provision (grantee, state);
CREATE INDEX provision_grant ON provision (grant_id);
CREATE INDEX provision_shown ON provision (consent, state) WHERE shown <> state;
CREATE INDEX provision_address ON provision (address);
CREATE INDEX provision_consent ON provision (consent);
CREATE INDEX provision_block ON provision (block) WHERE block IS NOT NULL;
CREATE TABLE provision_category (provision INTEGER NOT NULL, hash INTEGER NOT NULL, PRIMARY KEY (provision, hash)) WITHOUT ROWID;

-- Each row sealed, chained by hash to the one before; runs of rows are Entries of a Batch.
CREATE TABLE audit (
  seq INTEGER PRIMARY KEY,
  time_ms INTEGER NOT NULL,
  patient INTEGER,
  keys BLOB NOT NULL,
  sealed BLOB NOT NULL,
  hash BLOB NOT NULL
);
CREATE INDEX audit_patient ON audit (patient, seq);
-- A run is the rows first..last; runs follow one another without a gap, so what waits is above the last run.
CREATE TABLE audit_run (
  pk INTEGER PRIMARY KEY,
  first INTEGER NOT NULL UNIQUE,
  last INTEGER NOT NULL,
  digest BLOB NOT NULL,
  commitment BLOB NOT NULL,
  keys BLOB NOT NULL,
  envelope BLOB,                   -- until its batch is pushed
  batch INTEGER NOT NULL
);
CREATE INDEX audit_run_batch ON audit_run (batch);

CREATE TABLE batch (
  pk INTEGER PRIMARY KEY,
  created_ms INTEGER NOT NULL,
  manifest_digest BLOB NOT NULL,
  root BLOB NOT NULL,
  size_class INTEGER NOT NULL,
  entries INTEGER NOT NULL,
  manifest BLOB,                   -- both until pushed
  sealed BLOB,
  pushed INTEGER NOT NULL DEFAULT 0,
  state TEXT NOT NULL CHECK (state IN ('closed', 'submitted', 'mined', 'final')),
  expected_head BLOB,              -- it was last sent on; the rest, where it landed
  new_head BLOB,
  tx_hash BLOB,
  block_number INTEGER, block_hash BLOB, block_time_s INTEGER
);
CREATE INDEX batch_open ON batch (pk) WHERE state <> 'final';
CREATE INDEX batch_unpushed ON batch (pk) WHERE pushed = 0;
CREATE INDEX batch_block ON batch (block_number) WHERE state = 'final';

CREATE TABLE intent (
  pk INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,         -- sha-256 of the call: the same signed act is relayed once
  kind TEXT NOT NULL CHECK (kind IN ('grant', 'revoke', 'revoke-all')),
  consent TEXT,
  call BLOB NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('signed', 'submitted', 'mined', 'final', 'failed')),
  created_ms INTEGER NOT NULL,
  tx_hash BLOB, block_number INTEGER, block_hash BLOB, error TEXT
);
CREATE INDEX intent_open ON intent (pk) WHERE state NOT IN ('final', 'failed');
CREATE INDEX intent_consent ON intent (consent, kind);
CREATE INDEX intent_block ON intent (block_number) WHERE state = 'final';

-- Transactions signed for a batch or an intent, stored before they are sent.
CREATE TABLE attempt (
  hash BLOB PRIMARY KEY,
  kind TEXT NOT NULL CHECK (kind IN ('batch', 'intent')),
  job INTEGER NOT NULL,
  nonce INTEGER NOT NULL,
  max_fee INTEGER NOT NULL, priority INTEGER,
  raw BLOB NOT NULL,
  basis BLOB NOT NULL,             -- of a batch, the head its call expects
  sent_ms INTEGER NOT NULL,
  sent_block INTEGER NOT NULL
);
CREATE INDEX attempt_job ON attempt (kind, job);
CREATE INDEX attempt_nonce ON attempt (nonce);

-- Where the follower stands: heads it followed to, newest first on a walk back.
CREATE TABLE chain_block (number INTEGER PRIMARY KEY, hash BLOB NOT NULL, time_s INTEGER NOT NULL);

CREATE TABLE account (
  pk INTEGER PRIMARY KEY,
  fhir_user TEXT NOT NULL UNIQUE,  -- Practitioner/1, Patient/1
  role TEXT NOT NULL,
  name TEXT NOT NULL,
  organizations TEXT NOT NULL,     -- space-separated references
  wallet TEXT,                     -- EIP-55 address
  represents TEXT,                 -- a delegate's Patient/1
  mandate_until_ms INTEGER,        -- when the mandate ends
  proofed INTEGER NOT NULL,
  created_ms INTEGER NOT NULL,
  closed_ms INTEGER
);
CREATE TABLE client (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, kind TEXT NOT NULL CHECK (kind IN ('feed', 'app', 'backend')),
  scope TEXT NOT NULL, purposes TEXT NOT NULL, jwks TEXT, jwks_uri TEXT, created_ms INTEGER NOT NULL, closed_ms INTEGER
) WITHOUT ROWID;
CREATE TABLE token (
  hash BLOB PRIMARY KEY,           -- keyed hash of the secret; the secret is never stored
  id TEXT NOT NULL UNIQUE,
  client TEXT NOT NULL, client_kind TEXT NOT NULL, user TEXT, role TEXT NOT NULL, scope TEXT NOT NULL,
  patient TEXT, purpose TEXT NOT NULL, grantees TEXT NOT NULL, reason TEXT, operator INTEGER NOT NULL,
  issued_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL, revoked_ms INTEGER
) WITHOUT ROWID;
CREATE INDEX token_expiry ON token (expires_ms);
CREATE TABLE assertion (client TEXT NOT NULL, jti TEXT NOT NULL, expires_ms INTEGER NOT NULL, PRIMARY KEY (client, jti)) WITHOUT ROWID;
CREATE INDEX assertion_expiry ON assertion (expires_ms);

-- Work that was asked for and is resumed after a crash (imports).
CREATE TABLE import_file (digest BLOB NOT NULL, line INTEGER NOT NULL, PRIMARY KEY (digest, line)) WITHOUT ROWID;
