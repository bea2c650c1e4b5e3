-- What each product sold on each day, in UTC.

CREATE TABLE public.daily_sales (
    day date,
    product_id bigint,
    orders bigint,
    units bigint,
    revenue numeric,
    unknown text[] NOT NULL,
    degraded boolean NOT NULL,
    revision text COLLATE "C" NOT NULL,
    PRIMARY KEY (day, product_id)
) WITH (fillfactor = 90);
CREATE INDEX ON public.daily_sales (product_id, day);
ALTER TABLE public.daily_sales REPLICA IDENTITY FULL;
ALTER PUBLICATION tributary ADD TABLE public.daily_sales;

-- The orders of a day: all, for who compares, and the degraded ones.
CREATE INDEX ON public.orders (((ordered_at AT TIME ZONE 'UTC')::date));
CREATE INDEX ON public.orders (((ordered_at AT TIME ZONE 'UTC')::date)) WHERE degraded;
