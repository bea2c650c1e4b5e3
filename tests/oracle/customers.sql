-- A customer for each customer id that has an order, with what was ordered and paid.
select o.customer_id::bigint as id,
       jsonb_build_object(
           'id', o.customer_id,
           'order_count', count(*),
           'ordered', coalesce(sum(ordered.total), 0)::numeric(40, 2)::text,
           'paid', coalesce(sum(paid.total), 0)::numeric(40, 2)::text,
           'balance', (coalesce(sum(ordered.total), 0) - coalesce(sum(paid.total), 0))::numeric(40, 2)::text
       )::text as row
from sales.sls_order o
left join (
    select order_id, sum(unit_price * quantity) as total
    from sales.sls_orderdetail
    group by order_id
) ordered on ordered.order_id = o.id
left join (
    select t.order_id, sum(d.sum) as total
    from accounting.ac_transaction t
    join accounting.ac_transactiondetail d on d.transaction_id = t.id
    group by t.order_id
) paid on paid.order_id = o.id
group by o.customer_id
order by o.customer_id
