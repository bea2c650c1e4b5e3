-- What does not fit between the systems, but for since when. An order may be paid in part for 30
-- days after the booking that left it so.
with booking as (
    select t.order_id, d.id, d.date, d.sum
    from accounting.ac_transaction t
    join accounting.ac_transactiondetail d on d.transaction_id = t.id
), paid as (
    select o.id,
           coalesce((select sum(unit_price * quantity) from sales.sls_orderdetail l
                     where l.order_id = o.id), 0)::numeric(40, 2) as total,
           coalesce((select sum(sum) from booking b where b.order_id = o.id), 0)::numeric(40, 2) as paid
    from sales.sls_order o
), part_paid as (
    select paid.*, (
        select max(after.date) from (
            select b.date,
                   sum(b.sum) over so_far as paid_then,
                   coalesce(sum(b.sum) over before, 0) as paid_before
            from booking b
            where b.order_id = paid.id
            window so_far as (order by b.date, b.id),
                   before as (order by b.date, b.id
                              rows between unbounded preceding and 1 preceding)
        ) after
        where after.paid_then > 0 and after.paid_then < paid.total
          and not (after.paid_before > 0 and after.paid_before < paid.total)
    ) as since
    from paid
    where paid.paid > 0 and paid.paid < paid.total
), stock as (
    select distinct on (item_id) item_id, quantity from warehouse.wh_quantity order by item_id, id desc
), found as (
    select 1 as rule, 'item_missing' as name, array['sales', 'warehouse'] as systems,
           'products' as resource, l.item_id::bigint as key,
           jsonb_build_object('order_lines', count(*)) as detail
    from sales.sls_orderdetail l
    left join warehouse.wh_item i on i.id = l.item_id
    where i.id is null
    group by l.item_id
    union all
    select 2, 'payment_without_order', array['accounting', 'sales'], 'transactions', t.id,
           jsonb_build_object('order_id', t.order_id, 'amount', coalesce((
               select sum(d.sum) from accounting.ac_transactiondetail d where d.transaction_id = t.id
           ), 0)::numeric(40, 2)::text)
    from accounting.ac_transaction t
    left join sales.sls_order o on o.id = t.order_id
    where o.id is null
    union all
    select 3, 'part_paid_too_long', array['accounting', 'sales'], 'orders', id,
           jsonb_build_object('total', total::text, 'paid', paid::text, 'part_paid_since',
               to_char(since at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
    from part_paid
    where since + interval '30 days' <= now()
    union all
    select 4, 'overpaid', array['accounting', 'sales'], 'orders', id,
           jsonb_build_object('total', total::text, 'paid', paid::text)
    from paid where paid > total
    union all
    select 5, 'negative_stock', array['warehouse'], 'products', i.id,
           jsonb_build_object('quantity_in_stock', s.quantity)
    from warehouse.wh_item i
    join stock s on s.item_id = i.id
    where s.quantity < 0
)
select key * 100 + rule as id,
       jsonb_build_object('id', key * 100 + rule, 'rule', name, 'systems', systems,
           'resource', resource, 'key', key, 'detail', detail)::text as row
from found
order by 1
