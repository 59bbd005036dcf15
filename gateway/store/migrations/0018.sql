-- A refresh token begins with the secret of its family, the same for all of one authorization (kept here as a keyed
-- hash), so that one that was used is known for one without a row of its own.
ALTER TABLE authorization ADD COLUMN family BLOB;
CREATE UNIQUE INDEX authorization_family ON authorization (family) WHERE family IS NOT NULL;

-- Who waits, by the keyed hash of the address they came from: no address fills the queue for others.
ALTER TABLE login ADD COLUMN source BLOB;
ALTER TABLE registration ADD COLUMN source BLOB;
