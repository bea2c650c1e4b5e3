-- A rebuild fills a second copy of what a source's topics say beside the served one, and then
-- brings that to it.

CREATE SCHEMA rebuild;
CREATE TABLE rebuild.wh_item (LIKE warehouse.wh_item INCLUDING ALL);
CREATE TABLE rebuild.wh_price (LIKE warehouse.wh_price INCLUDING ALL);
CREATE TABLE rebuild.wh_quantity (LIKE warehouse.wh_quantity INCLUDING ALL);
CREATE TABLE rebuild.ac_transaction (LIKE accounting.ac_transaction INCLUDING ALL);
CREATE TABLE rebuild.ac_transactiondetail (LIKE accounting.ac_transactiondetail INCLUDING ALL);
CREATE TABLE rebuild.sls_order (LIKE sales.sls_order INCLUDING ALL);
CREATE TABLE rebuild.sls_orderdetail (LIKE sales.sls_orderdetail INCLUDING ALL);
CREATE TABLE rebuild.quarantine (LIKE public.quarantine INCLUDING ALL);
CREATE TABLE rebuild.degraded (LIKE aggregator.degraded INCLUDING ALL);

-- Where the rebuild of a source stands in its topics; commits with the data. No row: none runs.
CREATE TABLE rebuild.standing (
    source text PRIMARY KEY,
    standing jsonb NOT NULL
) WITH (fillfactor = 50);
