-- How often a patient ended everything they granted: what was shown to be signed before the last time is no more taken.
CREATE TABLE revoked_all (patient INTEGER PRIMARY KEY, times INTEGER NOT NULL);
