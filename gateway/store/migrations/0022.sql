-- A record of several patients has a Task for each of them. ``patient``: patient.pk; 0 for what is about nobody.
CREATE TABLE verifying_of (
  type TEXT NOT NULL,
  id TEXT NOT NULL,
  patient INTEGER NOT NULL,
  task TEXT NOT NULL UNIQUE,
  PRIMARY KEY (type, id, patient)
) WITHOUT ROWID;
INSERT INTO verifying_of SELECT w.type, w.id, coalesce(
  (SELECT v.patient FROM version v WHERE v.type='Task' AND v.id=w.task AND v.superseded IS NULL), 0), w.task
  FROM verifying w;
DROP TABLE verifying;
ALTER TABLE verifying_of RENAME TO verifying;
