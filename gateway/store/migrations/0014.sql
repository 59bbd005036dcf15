-- Audit rows the patient and the head are still to be told of; written in the commit of the row itself.
CREATE TABLE notice_due (audit INTEGER PRIMARY KEY);
-- What was told and may still grow: one requester and one patient, for one window. ``requester``: a keyed hash.
-- ``count``: the rows so far, ``told``: how many of them the Communications say.
CREATE TABLE notice_burst (
  pk INTEGER PRIMARY KEY,
  requester INTEGER NOT NULL,
  patient INTEGER NOT NULL,
  first INTEGER NOT NULL,          -- audit.seq
  last INTEGER NOT NULL,
  until_ms INTEGER NOT NULL,
  count INTEGER NOT NULL,
  told INTEGER NOT NULL,
  communications TEXT NOT NULL     -- ids, between spaces
);
CREATE UNIQUE INDEX notice_burst_requester ON notice_burst (requester, patient);
CREATE INDEX notice_burst_until ON notice_burst (until_ms);
-- Notices the head's webhook has not acknowledged.
CREATE TABLE notice_hook (
  pk INTEGER PRIMARY KEY,
  communication TEXT NOT NULL,
  kind TEXT NOT NULL,
  created_ms INTEGER NOT NULL,
  failures INTEGER NOT NULL DEFAULT 0,
  next_ms INTEGER NOT NULL DEFAULT 0
);
-- Up to which version it was looked whether one waits to be verified.
INSERT INTO setting SELECT 'verifying_seq', coalesce(max(seq), 0) FROM version;
-- The open Task of a record that is to be verified.
CREATE TABLE verifying (
  type TEXT NOT NULL,
  id TEXT NOT NULL,
  task TEXT NOT NULL UNIQUE,
  PRIMARY KEY (type, id)
) WITHOUT ROWID;
