-- What a version refers to: ``key`` names the reference parameter, ``target`` is the keyed hash of one of the
-- target's names, as ``index_hash`` holds it of the target itself. Disposable, like the rest of the index.
CREATE TABLE index_reference (version INTEGER NOT NULL, key INTEGER NOT NULL, target INTEGER NOT NULL,
  PRIMARY KEY (version, key, target)) WITHOUT ROWID;
