-- Exceptions within a Consent, and provisions for named records.
ALTER TABLE provision ADD COLUMN exception INTEGER NOT NULL DEFAULT 0;  -- 1 inside the root rule of its Consent
ALTER TABLE provision ADD COLUMN data INTEGER NOT NULL DEFAULT 0;       -- bits: 1 provision_record, 2 provision_name restrict it

CREATE TABLE provision_record (type TEXT NOT NULL, id TEXT NOT NULL, provision INTEGER NOT NULL,
  PRIMARY KEY (type, id, provision)) WITHOUT ROWID;
CREATE INDEX provision_record_back ON provision_record (provision);
-- Keyed hashes of authors and pieces of care, as versions hold them among their categories.
CREATE TABLE provision_name (provision INTEGER NOT NULL, hash INTEGER NOT NULL, PRIMARY KEY (provision, hash)) WITHOUT ROWID;

-- Everyone, whom a deny may name, is the grantee 0 here: one search finds both.
CREATE INDEX provision_holder ON provision (patient, ifnull(grantee, 0), permit, data, valid_until_ms);
CREATE INDEX provision_lifting ON provision (consent) WHERE exception=1 AND permit=1;
