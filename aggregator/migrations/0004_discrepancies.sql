-- What does not fit between the systems.

-- How long an order may be paid in part: what the rows below were computed with.
CREATE TABLE aggregator.discrepancy_terms (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    part_paid_max interval NOT NULL
);

-- Each order that is paid in part, since when, and when that is too long.
CREATE TABLE aggregator.part_paid (
    order_id bigint PRIMARY KEY,
    since timestamptz NOT NULL,
    due timestamptz NOT NULL
);
-- An expression, so that nobody looks an order up by it.
CREATE INDEX ON aggregator.part_paid (due, (order_id + 0));

-- Rows that a view transaction of many steps touched, to be judged when it commits; empty
-- outside of one.
CREATE UNLOGGED TABLE aggregator.judged_later (
    resource text NOT NULL,
    id bigint NOT NULL,
    PRIMARY KEY (resource, id)
);

-- `id` is the key of the row that the discrepancy is about, times 100, plus the rule's number.
CREATE TABLE public.discrepancies (
    id bigint PRIMARY KEY,
    rule text NOT NULL,
    systems text[] NOT NULL,
    resource text NOT NULL,
    key bigint NOT NULL,
    since timestamptz NOT NULL,
    detail jsonb NOT NULL,
    unknown text[] NOT NULL,
    degraded boolean NOT NULL,
    revision text COLLATE "C" NOT NULL
);
CREATE INDEX ON public.discrepancies (rule, id);

ALTER TABLE public.discrepancies REPLICA IDENTITY FULL;
ALTER PUBLICATION tributary ADD TABLE public.discrepancies;
