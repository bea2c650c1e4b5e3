-- Copies of the source tables, one schema a system, in a database of the oracle's own.
create schema warehouse;
create table warehouse.wh_item (id bigint primary key, name varchar(200), description text, country_of_origin varchar(200));
create table warehouse.wh_price (id bigint primary key, price numeric(8, 2), item_id bigint);
create table warehouse.wh_quantity (id bigint primary key, quantity int, item_id bigint);
create schema accounting;
create table accounting.ac_transaction (id bigint primary key, order_id int);
create table accounting.ac_transactiondetail (id bigint primary key, sum numeric(8, 2), date timestamptz, transaction_id bigint);
create schema sales;
create table sales.sls_order (id bigint primary key, customer_id int, date timestamptz);
create table sales.sls_orderdetail (id bigint primary key, item_id int, unit_price numeric(8, 2), quantity int, order_id bigint);
