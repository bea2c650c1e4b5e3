-- The unified tables, kept by row triggers of the mirrors: the joins and columns of the aggregator,
-- without quarantine and unknown sources.

create function public.show_product(of bigint) returns void language sql as $$
    insert into public.products
    select t.id, i.name, i.description, i.country_of_origin,
        (select round(p.price, 2) from warehouse.wh_price p where p.item_id = t.id order by p.id desc limit 1),
        (select q.quantity from warehouse.wh_quantity q where q.item_id = t.id order by q.id desc limit 1),
        coalesce(s.units_sold, 0), round(coalesce(s.revenue, 0), 2),
        case when i.id is null then 'delisted' else 'listed' end, '{}', false, ''
    from (select of as id) t
    left join warehouse.wh_item i on i.id = t.id
    left join aggregator.product_totals s on s.product_id = t.id
    on conflict (id) do update set units_sold = excluded.units_sold, revenue = excluded.revenue
$$;

create function public.move_product(of bigint, sign int, quantity int, unit_price numeric)
returns void language sql as $$
    insert into aggregator.product_totals as t values (of, sign, sign * quantity, sign * quantity * unit_price)
    on conflict (product_id) do update set line_count = t.line_count + excluded.line_count,
        units_sold = t.units_sold + excluded.units_sold, revenue = t.revenue + excluded.revenue
$$;

create function public.move_customer(of bigint, sign int, total numeric, was_paid numeric)
returns void language sql as $$
    insert into public.customers as c
    values (of, sign, sign * total, sign * was_paid, sign * (total - was_paid), '{}', false, '')
    on conflict (id) do update set order_count = c.order_count + excluded.order_count,
        ordered = c.ordered + excluded.ordered, paid = c.paid + excluded.paid,
        balance = c.balance + excluded.balance
$$;

create function public.show_transaction(of bigint) returns void language sql as $$
    insert into public.transactions
    select x.id, x.order_id, round(coalesce(d.amount, 0), 2), coalesce(d.details, '[]'), '{}', false, ''
    from accounting.ac_transaction x
    left join lateral (
        select sum(d.sum) as amount, jsonb_agg(jsonb_build_object('id', d.id,
            'amount', round(d.sum, 2)::text, 'booked_at', aggregator.iso_time(d.date)) order by d.id) as details
        from accounting.ac_transactiondetail d where d.transaction_id = x.id
    ) d on true
    where x.id = of
    on conflict (id) do update set order_id = excluded.order_id, amount = excluded.amount,
        details = excluded.details
$$;

create function public.show_order(of bigint) returns void language plpgsql as $$
declare
    was public.orders;
    now public.orders;
begin
    select * into was from public.orders where id = of;
    insert into public.orders
    select o.*, o.total - o.paid,
        case when o.paid = o.total then 'paid' when o.paid > o.total then 'overpaid'
            when o.paid > 0 then 'part_paid' else 'unpaid' end, '{}', false, ''
    from (
        select o.id, o.customer_id, o.date, coalesce(l.lines, '[]') as lines,
            round(coalesce(l.total, 0), 2) as total, coalesce(x.transactions, '[]') as transactions,
            round(coalesce(x.paid, 0), 2) as paid
        from sales.sls_order o
        left join lateral (
            select sum(d.unit_price * d.quantity) as total, jsonb_agg(jsonb_build_object('id', d.id,
                'product_id', d.item_id, 'unit_price', round(d.unit_price, 2)::text, 'quantity', d.quantity,
                'amount', round(d.unit_price * d.quantity, 2)::text) order by d.id) as lines
            from sales.sls_orderdetail d where d.order_id = o.id
        ) l on true
        left join lateral (
            select sum(x.amount) as paid, jsonb_agg(jsonb_build_object('id', x.id,
                'amount', x.amount::text, 'details', x.details) order by x.id) as transactions
            from public.transactions x where x.order_id = o.id
        ) x on true
        where o.id = of
    ) o
    on conflict (id) do update set customer_id = excluded.customer_id, ordered_at = excluded.ordered_at,
        lines = excluded.lines, total = excluded.total, transactions = excluded.transactions,
        paid = excluded.paid, balance = excluded.balance, payment_status = excluded.payment_status
    returning * into now;
    if was.id is not null then
        perform public.move_customer(was.customer_id, -1, was.total, was.paid);
    end if;
    if now.id is not null then
        perform public.move_customer(now.customer_id, 1, now.total, now.paid);
    end if;
end
$$;

create function public.order_changed() returns trigger language plpgsql as $$
begin
    perform public.show_order(new.id);
    return null;
end
$$;
create trigger changed after insert or update on sales.sls_order
    for each row execute function public.order_changed();

create function public.line_changed() returns trigger language plpgsql as $$
begin
    if tg_op = 'UPDATE' then
        perform public.move_product(old.item_id, -1, old.quantity, old.unit_price);
        perform public.show_product(old.item_id);
        perform public.show_order(old.order_id);
    end if;
    perform public.move_product(new.item_id, 1, new.quantity, new.unit_price);
    perform public.show_product(new.item_id);
    perform public.show_order(new.order_id);
    return null;
end
$$;
create trigger changed after insert or update on sales.sls_orderdetail
    for each row execute function public.line_changed();

create function public.transaction_changed() returns trigger language plpgsql as $$
begin
    perform public.show_transaction(new.id);
    if tg_op = 'UPDATE' and old.order_id <> new.order_id then
        perform public.show_order(old.order_id);
    end if;
    perform public.show_order(new.order_id);
    return null;
end
$$;
create trigger changed after insert or update on accounting.ac_transaction
    for each row execute function public.transaction_changed();

create function public.detail_changed() returns trigger language plpgsql as $$
begin
    perform public.show_transaction(new.transaction_id);
    perform public.show_order(x.order_id) from accounting.ac_transaction x where x.id = new.transaction_id;
    return null;
end
$$;
create trigger changed after insert or update on accounting.ac_transactiondetail
    for each row execute function public.detail_changed();
