-- An order with its lines and the transactions that name it.
with line as (
    select order_id,
           sum(unit_price * quantity) as total,
           jsonb_agg(jsonb_build_object(
               'id', id,
               'product_id', item_id,
               'unit_price', unit_price::numeric(40, 2)::text,
               'quantity', quantity,
               'amount', (unit_price * quantity)::numeric(40, 2)::text
           ) order by id) as lines
    from sales.sls_orderdetail
    group by order_id
), booked as (
    select t.id, t.order_id, coalesce(sum(d.sum), 0) as amount,
           coalesce(jsonb_agg(jsonb_build_object(
               'id', d.id,
               'amount', d.sum::numeric(40, 2)::text,
               'booked_at', to_char(d.date at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
           ) order by d.id) filter (where d.id is not null), '[]') as details
    from accounting.ac_transaction t
    left join accounting.ac_transactiondetail d on d.transaction_id = t.id
    group by t.id, t.order_id
), paid as (
    select order_id,
           sum(amount) as paid,
           jsonb_agg(jsonb_build_object(
               'id', id, 'amount', amount::numeric(40, 2)::text, 'details', details
           ) order by id) as transactions
    from booked
    group by order_id
)
select o.id::bigint as id,
       jsonb_build_object(
           'id', o.id,
           'customer_id', o.customer_id,
           'ordered_at', to_char(o.date at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
           'lines', coalesce(line.lines, '[]'),
           'total', coalesce(line.total, 0)::numeric(40, 2)::text,
           'transactions', coalesce(paid.transactions, '[]'),
           'paid', coalesce(paid.paid, 0)::numeric(40, 2)::text,
           'balance', (coalesce(line.total, 0) - coalesce(paid.paid, 0))::numeric(40, 2)::text,
           'payment_status', case
               when coalesce(paid.paid, 0) = coalesce(line.total, 0) then 'paid'
               when coalesce(paid.paid, 0) > coalesce(line.total, 0) then 'overpaid'
               when coalesce(paid.paid, 0) > 0 then 'part_paid'
               else 'unpaid'
           end
       )::text as row
from sales.sls_order o
left join line on line.order_id = o.id
left join paid on paid.order_id = o.id
order by o.id
