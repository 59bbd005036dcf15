-- What was taken of each spool file (store/spool.py): bytes, and records.
CREATE TABLE spool (
  name TEXT PRIMARY KEY,
  taken INTEGER NOT NULL,
  number INTEGER NOT NULL
) WITHOUT ROWID;
