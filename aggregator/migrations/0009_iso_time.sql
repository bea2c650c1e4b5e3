-- The same times as before, without extracting the year as a number from each: written for every
-- booking of every payment that changes.
CREATE OR REPLACE FUNCTION aggregator.iso_time(at timestamptz) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN at >= '0001-01-01 00:00:00+00' AND at < '10000-01-01 00:00:00+00'
        THEN to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
        WHEN at >= '10000-01-01 00:00:00+00'
        THEN to_char(at AT TIME ZONE 'UTC', '"+"YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
        -- 1 BC is the year 0 there.
        ELSE CASE WHEN extract(year FROM at AT TIME ZONE 'UTC') < -1 THEN '-' ELSE '' END
            || to_char(-1 - extract(year FROM at AT TIME ZONE 'UTC'), 'FM0000')
            || to_char(at AT TIME ZONE 'UTC', '-MM-DD"T"HH24:MI:SS.US"Z"')
    END
$$;
