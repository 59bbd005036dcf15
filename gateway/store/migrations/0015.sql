-- Failed requests of the OAuth doors, by the keyed hash of where they came from: how many within the window that began
-- at ``since_ms``. All workers count together.
CREATE TABLE door_failure (key BLOB PRIMARY KEY, since_ms INTEGER NOT NULL, failures INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX door_failure_since ON door_failure (since_ms);
