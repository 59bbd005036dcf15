-- Where the delivery of each Subscription stands; what it asks for is in its sealed version alone. ``token``: whose Grant
-- is read anew at every delivery. ``cursor``: the seq up to which everything was looked at. ``delivered``: how many
-- events its endpoint has acknowledged.
CREATE TABLE subscription (
  id TEXT PRIMARY KEY,
  client TEXT NOT NULL,
  user TEXT,
  token TEXT NOT NULL,
  state TEXT NOT NULL,
  cursor INTEGER NOT NULL,
  delivered INTEGER NOT NULL DEFAULT 0,
  failures INTEGER NOT NULL DEFAULT 0,
  next_ms INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX subscription_token ON subscription (token);
-- The latest events that were acknowledged, by their number.
CREATE TABLE subscription_event (
  subscription TEXT NOT NULL,
  number INTEGER NOT NULL,
  version INTEGER NOT NULL,
  PRIMARY KEY (subscription, number)
) WITHOUT ROWID;
