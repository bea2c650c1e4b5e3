-- The view: private state, mirrors of the sources' tables, unified tables, their publication.

-- Private state -------------------------------------------------------------------------------

-- The view's one revision: who wrote last, and the number of its view transaction. Each view
-- transaction moves this row from what its writer read or made last, or fails.
CREATE TABLE aggregator.fence (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    writer bigint NOT NULL,
    number bigint NOT NULL
);
INSERT INTO aggregator.fence (writer, number) VALUES (0, 0);

-- Where the aggregator stands in each source's topics; commits with the data.
CREATE TABLE aggregator.standing (
    source text PRIMARY KEY,
    standing jsonb NOT NULL
) WITH (fillfactor = 50);

-- Contributions of all order lines to the product that they name.
CREATE TABLE aggregator.product_totals (
    product_id bigint PRIMARY KEY,
    line_count bigint NOT NULL,
    units_sold bigint NOT NULL,
    revenue numeric NOT NULL
) WITH (fillfactor = 80);

-- Unified rows that an input in quarantine belongs to.
CREATE TABLE aggregator.degraded (
    resource text NOT NULL,
    id bigint NOT NULL,
    source text NOT NULL,
    "table" text NOT NULL,
    key text NOT NULL,
    PRIMARY KEY (resource, id, source, "table", key)
);
CREATE INDEX ON aggregator.degraded (source, "table", key);

-- A time as the API writes it: UTC, microseconds, ISO 8601 for years outside 1 to 9999.
CREATE FUNCTION aggregator.iso_time(at timestamptz) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN extract(year FROM at AT TIME ZONE 'UTC') BETWEEN 1 AND 9999
        THEN to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
        WHEN extract(year FROM at AT TIME ZONE 'UTC') > 9999
        THEN to_char(at AT TIME ZONE 'UTC', '"+"YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
        -- 1 BC is the year 0 there.
        ELSE CASE WHEN extract(year FROM at AT TIME ZONE 'UTC') < -1 THEN '-' ELSE '' END
            || to_char(-1 - extract(year FROM at AT TIME ZONE 'UTC'), 'FM0000')
            || to_char(at AT TIME ZONE 'UTC', '-MM-DD"T"HH24:MI:SS.US"Z"')
    END
$$;

-- Mirrors -------------------------------------------------------------------------------------
-- The sources' names. No secondary constraint: what the source allows, and what it allows after
-- its next migration, must fit. Ids are bigint, so that a source may widen its own.

CREATE SCHEMA warehouse;
CREATE TABLE warehouse.wh_item (
    id bigint PRIMARY KEY,
    name text,
    description text,
    country_of_origin text
);
CREATE TABLE warehouse.wh_price (id bigint PRIMARY KEY, price numeric, item_id bigint);
CREATE INDEX ON warehouse.wh_price (item_id, id);
CREATE TABLE warehouse.wh_quantity (id bigint PRIMARY KEY, quantity integer, item_id bigint);
CREATE INDEX ON warehouse.wh_quantity (item_id, id);

CREATE SCHEMA accounting;
CREATE TABLE accounting.ac_transaction (id bigint PRIMARY KEY, order_id bigint);
CREATE INDEX ON accounting.ac_transaction (order_id, id);
CREATE TABLE accounting.ac_transactiondetail (
    id bigint PRIMARY KEY,
    sum numeric,
    date timestamptz,
    transaction_id bigint
);
CREATE INDEX ON accounting.ac_transactiondetail (transaction_id, id);

CREATE SCHEMA sales;
CREATE TABLE sales.sls_order (id bigint PRIMARY KEY, customer_id bigint, date timestamptz);
CREATE TABLE sales.sls_orderdetail (
    id bigint PRIMARY KEY,
    item_id bigint,
    unit_price numeric,
    quantity integer,
    order_id bigint
);
CREATE INDEX ON sales.sls_orderdetail (order_id, id);

-- Unified tables ------------------------------------------------------------------------------

CREATE TABLE public.products (
    id bigint PRIMARY KEY,
    name text,
    description text,
    country_of_origin text,
    price numeric,
    quantity_in_stock bigint,
    units_sold bigint,
    revenue numeric,
    status text,
    unknown text[] NOT NULL,
    degraded boolean NOT NULL,
    revision text COLLATE "C" NOT NULL
);
CREATE INDEX ON public.products (units_sold DESC, id) WHERE units_sold > 0;

CREATE TABLE public.transactions (
    id bigint PRIMARY KEY,
    order_id bigint,
    amount numeric,
    details jsonb,
    unknown text[] NOT NULL,
    degraded boolean NOT NULL,
    revision text COLLATE "C" NOT NULL
);
CREATE INDEX ON public.transactions (order_id, id);

CREATE TABLE public.orders (
    id bigint PRIMARY KEY,
    customer_id bigint,
    ordered_at timestamptz,
    lines jsonb,
    total numeric,
    transactions jsonb,
    paid numeric,
    balance numeric,
    payment_status text,
    unknown text[] NOT NULL,
    degraded boolean NOT NULL,
    revision text COLLATE "C" NOT NULL
);
CREATE INDEX ON public.orders (customer_id, id);
CREATE INDEX ON public.orders (customer_id) WHERE degraded;

CREATE TABLE public.customers (
    id bigint PRIMARY KEY,
    order_count bigint,
    ordered numeric,
    paid numeric,
    balance numeric,
    unknown text[] NOT NULL,
    degraded boolean NOT NULL,
    revision text COLLATE "C" NOT NULL
) WITH (fillfactor = 90);

CREATE TABLE public.positions (
    source text PRIMARY KEY,
    epoch bigint,
    lsn text,
    wal_end text,
    lag_bytes bigint,
    committed_at timestamptz,
    current_at timestamptz,
    applied_at timestamptz,
    writer bigint NOT NULL,
    number bigint NOT NULL,
    revision text COLLATE "C" NOT NULL
) WITH (fillfactor = 50);

-- What could not be applied, and why. `position` is the checkpoint that covers it (none while
-- its source loads), `record` where in Kafka it stands.
CREATE TABLE public.quarantine (
    source text NOT NULL,
    "table" text NOT NULL,
    key text NOT NULL,
    reason text NOT NULL,
    position text,
    record text NOT NULL,
    at timestamptz NOT NULL,
    revision text COLLATE "C" NOT NULL,
    PRIMARY KEY (source, "table", key)
);
CREATE INDEX ON public.quarantine (source) WHERE position IS NULL;

ALTER TABLE public.products REPLICA IDENTITY FULL;
ALTER TABLE public.transactions REPLICA IDENTITY FULL;
ALTER TABLE public.orders REPLICA IDENTITY FULL;
ALTER TABLE public.customers REPLICA IDENTITY FULL;
ALTER TABLE public.positions REPLICA IDENTITY FULL;
ALTER TABLE public.quarantine REPLICA IDENTITY FULL;

CREATE PUBLICATION tributary FOR TABLE public.products, public.transactions, public.orders,
    public.customers, public.positions, public.quarantine;
