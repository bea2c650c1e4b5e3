-- A product for each item of the warehouse, and for each item id that sales sold.
with ids as (
    select id from warehouse.wh_item
    union
    select item_id from sales.sls_orderdetail
), sold as (
    select item_id, sum(quantity) as units, sum(unit_price * quantity) as revenue
    from sales.sls_orderdetail
    group by item_id
), price as (
    select distinct on (item_id) item_id, price from warehouse.wh_price order by item_id, id desc
), stock as (
    select distinct on (item_id) item_id, quantity from warehouse.wh_quantity order by item_id, id desc
)
select ids.id::bigint as id,
       jsonb_build_object(
           'id', ids.id,
           'name', item.name,
           'description', item.description,
           'country_of_origin', item.country_of_origin,
           'price', price.price::numeric(40, 2)::text,
           'quantity_in_stock', stock.quantity,
           'units_sold', coalesce(sold.units, 0),
           'revenue', coalesce(sold.revenue, 0)::numeric(40, 2)::text,
           'status', case when item.id is null then 'delisted' else 'listed' end
       )::text as row
from ids
left join warehouse.wh_item item on item.id = ids.id
left join price on price.item_id = ids.id
left join stock on stock.item_id = ids.id
left join sold on sold.item_id = ids.id
order by ids.id
