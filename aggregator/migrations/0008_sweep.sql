-- How far the comparison in the background is, so that a round goes on whoever writes.
CREATE TABLE aggregator.sweep (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    state jsonb NOT NULL
) WITH (fillfactor = 50);
