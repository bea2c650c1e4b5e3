-- `public.orders` as PostgreSQL's materialized view: the joins of the largest unified table alone.
create materialized view public.order_view as
with line as (
    select order_id, sum(unit_price * quantity) as total,
        jsonb_agg(jsonb_build_object('id', id, 'product_id', item_id,
            'unit_price', round(unit_price, 2)::text, 'quantity', quantity,
            'amount', round(unit_price * quantity, 2)::text) order by id) as lines
    from sales.sls_orderdetail group by order_id
), booked as (
    select x.id, x.order_id, coalesce(sum(d.sum), 0) as amount,
        jsonb_agg(jsonb_build_object('id', d.id, 'amount', round(d.sum, 2)::text,
            'booked_at', aggregator.iso_time(d.date)) order by d.id) as details
    from accounting.ac_transaction x
    left join accounting.ac_transactiondetail d on d.transaction_id = x.id
    group by x.id, x.order_id
), paid as (
    select order_id, sum(amount) as paid,
        jsonb_agg(jsonb_build_object('id', id, 'amount', amount::text, 'details', details) order by id)
            as transactions
    from booked group by order_id
)
select o.id, o.customer_id, o.date as ordered_at, line.lines, coalesce(line.total, 0) as total,
    paid.transactions, coalesce(paid.paid, 0) as paid,
    coalesce(line.total, 0) - coalesce(paid.paid, 0) as balance
from sales.sls_order o
left join line on line.order_id = o.id
left join paid on paid.order_id = o.id;
create unique index on public.order_view (id);
