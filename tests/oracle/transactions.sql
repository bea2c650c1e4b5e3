-- A transaction with its details; its order may not exist.
select t.id::bigint as id,
       jsonb_build_object(
           'id', t.id,
           'order_id', t.order_id,
           'amount', coalesce(sum(d.sum), 0)::numeric(40, 2)::text,
           'details', coalesce(jsonb_agg(jsonb_build_object(
               'id', d.id,
               'amount', d.sum::numeric(40, 2)::text,
               'booked_at', to_char(d.date at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
           ) order by d.id) filter (where d.id is not null), '[]')
       )::text as row
from accounting.ac_transaction t
left join accounting.ac_transactiondetail d on d.transaction_id = t.id
group by t.id, t.order_id
order by t.id
