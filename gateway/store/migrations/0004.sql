-- A history since a moment begins at the first version written after it, however long what came before.
CREATE INDEX version_updated ON version (updated_ms);
