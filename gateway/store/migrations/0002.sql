-- Long work that was asked for: whoever asked polls it, one process at a time carries it out under a lease.
-- What may tell of a patient (request, outcome, a part's text) is sealed by the rows' writer; versions are named by seq.
CREATE TABLE job (
  pk INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  kind TEXT NOT NULL CHECK (kind IN ('export', 'import', 'request')),
  client TEXT NOT NULL,
  user TEXT,
  token TEXT NOT NULL,             -- token.id of who asked
  state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed')),
  runner TEXT,
  lease_ms INTEGER NOT NULL DEFAULT 0,
  attempts INTEGER NOT NULL DEFAULT 0,
  created_ms INTEGER NOT NULL,
  expires_ms INTEGER NOT NULL,
  decision_seq INTEGER,            -- what a finished job's answer was decided at
  progress TEXT NOT NULL DEFAULT '',
  cursor TEXT NOT NULL DEFAULT '', -- where a restarted runner goes on; numbers and type names alone
  request BLOB NOT NULL,
  outcome BLOB
);
CREATE INDEX job_open ON job (pk) WHERE state IN ('queued', 'running');
CREATE INDEX job_expiry ON job (expires_ms);
CREATE INDEX job_owner ON job (client, user);
CREATE TABLE job_part (
  job INTEGER NOT NULL,
  place INTEGER NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('output', 'deleted', 'error', 'input')),
  type TEXT NOT NULL,
  count INTEGER NOT NULL,
  body BLOB NOT NULL,
  PRIMARY KEY (job, place)
);
