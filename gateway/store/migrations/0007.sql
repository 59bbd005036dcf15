-- Search parameters that clients brought and that are in use; ``body`` is the sealed resource. ``made`` is the generation
-- it came with: a pass over the index that began at it or later makes it ready.
CREATE TABLE search_parameter (
  id TEXT PRIMARY KEY,
  body BLOB NOT NULL,
  made INTEGER NOT NULL,
  ready INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
-- Which of them holds a code of a type, by keyed hash: two cannot.
CREATE TABLE search_parameter_code (hash INTEGER PRIMARY KEY, id TEXT NOT NULL);
CREATE INDEX search_parameter_codes ON search_parameter_code (id);
INSERT INTO setting VALUES ('search_parameters', 1);

-- A job may also be a pass over the index.
CREATE TABLE job_kept (
  pk INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  kind TEXT NOT NULL CHECK (kind IN ('export', 'import', 'request', 'reindex')),
  client TEXT NOT NULL,
  user TEXT,
  token TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed')),
  runner TEXT,
  lease_ms INTEGER NOT NULL DEFAULT 0,
  attempts INTEGER NOT NULL DEFAULT 0,
  created_ms INTEGER NOT NULL,
  expires_ms INTEGER NOT NULL,
  decision_seq INTEGER,
  progress TEXT NOT NULL DEFAULT '',
  cursor TEXT NOT NULL DEFAULT '',
  request BLOB NOT NULL,
  outcome BLOB
);
INSERT INTO job_kept SELECT * FROM job;
DROP TABLE job;
ALTER TABLE job_kept RENAME TO job;
CREATE INDEX job_open ON job (pk) WHERE state IN ('queued', 'running');
CREATE INDEX job_expiry ON job (expires_ms);
CREATE INDEX job_owner ON job (client, user);
