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

-- Clients that registered themselves (RFC 7591). A client row of theirs stands only while state is 'approved'.
CREATE TABLE registration (
  client TEXT PRIMARY KEY,
  state TEXT NOT NULL CHECK (state IN ('pending', 'approved', 'rejected', 'closed')),
  metadata TEXT NOT NULL,          -- JSON in RFC 7591's words: what is asked for, approved or not
  secret BLOB,                     -- keyed hash of the client secret
  token BLOB UNIQUE,               -- keyed hash of the registration access token; NULL: it ended
  created_ms INTEGER NOT NULL,
  asked_ms INTEGER NOT NULL,       -- when what stands in metadata was asked for
  decided_ms INTEGER, decided_by TEXT, reason TEXT
) WITHOUT ROWID;
CREATE INDEX registration_state ON registration (state, asked_ms);
