-- A patient sees, and ends, what others let apps do with their record.
CREATE INDEX authorization_patient ON authorization (patient) WHERE patient IS NOT NULL AND revoked_ms IS NULL;
