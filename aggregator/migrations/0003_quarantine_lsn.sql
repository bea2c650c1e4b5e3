-- Where in the source's log the change stands that could not be applied; a later change of the
-- same key ends it.
ALTER TABLE public.quarantine ADD COLUMN lsn pg_lsn;
ALTER TABLE rebuild.quarantine ADD COLUMN lsn pg_lsn;
