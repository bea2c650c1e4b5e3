-- Tables that flooded the quarantine and stand still until they are read again.

-- True: the row, whose key is `*`, stands for its whole table, which is suspended.
ALTER TABLE public.quarantine ADD COLUMN suspended boolean NOT NULL DEFAULT false;
ALTER TABLE rebuild.quarantine ADD COLUMN suspended boolean NOT NULL DEFAULT false;

-- The unified tables that rows of a suspended table of this source belong to: all their rows are
-- degraded, whatever the rows themselves say.
ALTER TABLE public.positions ADD COLUMN degraded text[] NOT NULL DEFAULT '{}';

-- Suspended tables that are being read again into their second copy. `covered_by` is the offset in
-- the source's checkpoint topic from which on a record covers all of that; null: it is not known yet.
CREATE TABLE aggregator.resumptions (
    source text NOT NULL,
    "table" text NOT NULL,
    covered_by bigint,
    PRIMARY KEY (source, "table")
);
