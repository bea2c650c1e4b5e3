-- What each item sold on each day in UTC: over the lines of the orders of that day.
select jsonb_build_object(
           'day', to_char(o.date at time zone 'UTC', 'YYYY-MM-DD'),
           'product_id', d.item_id,
           'orders', count(distinct o.id),
           'units', sum(d.quantity),
           'revenue', sum(d.unit_price * d.quantity)::numeric(40, 2)::text
       )::text as row
from sales.sls_order o
join sales.sls_orderdetail d on d.order_id = o.id
group by to_char(o.date at time zone 'UTC', 'YYYY-MM-DD'), d.item_id
