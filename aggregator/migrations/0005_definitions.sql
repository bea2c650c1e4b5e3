-- By which definition each unified table's rows were computed. One that is another's, or that has
-- no row here, is computed anew by the next writer.
CREATE TABLE aggregator.definitions (
    resource text PRIMARY KEY,
    checksum text NOT NULL
);
