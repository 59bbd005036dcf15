-- Launch contexts an EHR opened: one handle each, kept as a keyed hash, taken once by the client it was opened for.
CREATE TABLE launch (
  id TEXT PRIMARY KEY,
  hash BLOB NOT NULL UNIQUE,
  client TEXT NOT NULL,
  opener TEXT NOT NULL,            -- who opened it: a feed's client id, or a person's fhirUser
  user TEXT,                       -- the only person it may be taken up by; NULL: whoever signs in
  patient TEXT, encounter TEXT,    -- Patient/1, Encounter/1
  fhir_context TEXT NOT NULL,      -- JSON array
  banner INTEGER NOT NULL,
  intent TEXT,
  created_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL, used_ms INTEGER
) WITHOUT ROWID;
CREATE INDEX launch_opener ON launch (opener, expires_ms);
CREATE INDEX launch_expiry ON launch (expires_ms);

-- Clients that registered themselves (RFC 7591); client.state says whether they stand, client.metadata what is asked for.
CREATE TABLE registration (
  client TEXT PRIMARY KEY,
  token BLOB UNIQUE,               -- keyed hash of the registration access token; NULL: it ended
  approved TEXT,                   -- JSON of what was last approved, which a rejected change goes back to; NULL: never
  created_ms INTEGER NOT NULL,
  asked_ms INTEGER NOT NULL,       -- when what is asked for was
  decided_ms INTEGER, decided_by TEXT, reason TEXT
) WITHOUT ROWID;
CREATE INDEX registration_created ON registration (created_ms);
