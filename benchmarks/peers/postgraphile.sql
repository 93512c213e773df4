-- What tables alone do not say, as PostGraphile's documentation has it: computed columns and functions that it reads.
CREATE OR REPLACE FUNCTION bed_status(bed bed) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN EXISTS (SELECT FROM bed_assignment a WHERE a.bed_id = bed.id AND a.ended_at IS NULL) THEN 'OCCUPIED'
        WHEN EXISTS (SELECT FROM reservation r WHERE r.bed_id = bed.id AND r.ended_at IS NULL AND r.until > now())
            THEN 'RESERVED'
        WHEN bed.service_state = 'IN_SERVICE' THEN 'FREE'
        ELSE bed.service_state END
$$;

CREATE OR REPLACE FUNCTION dispensary_bed_total(dispensary dispensary) RETURNS int LANGUAGE sql STABLE AS $$
    SELECT count(*)::int FROM bed b WHERE b.dispensary_id = dispensary.id AND b.archived_at IS NULL
$$;

CREATE OR REPLACE FUNCTION dispensary_bed_free(dispensary dispensary) RETURNS int LANGUAGE sql STABLE AS $$
    SELECT count(*)::int FROM bed b
    LEFT JOIN bed_assignment a
        ON a.bed_id = b.id AND a.dispensary_id = dispensary.id AND a.ended_at IS NULL
    LEFT JOIN reservation r ON r.bed_id = b.id AND r.dispensary_id = dispensary.id
        AND r.ended_at IS NULL AND r.until > now()
    WHERE b.dispensary_id = dispensary.id AND b.archived_at IS NULL AND b.service_state = 'IN_SERVICE'
        AND a.id IS NULL AND r.id IS NULL
$$;

CREATE OR REPLACE FUNCTION found_patients(words text) RETURNS SETOF patient LANGUAGE sql STABLE AS $$
    SELECT p.* FROM patient p WHERE p.search @@ words::tsquery AND p.archived_at IS NULL ORDER BY p.name_key, p.id
$$;

CREATE OR REPLACE FUNCTION discharged_stays(dispensary bigint, begins timestamptz, ends timestamptz)
RETURNS SETOF stay LANGUAGE sql STABLE AS $$
    SELECT s.* FROM stay s WHERE s.dispensary_id = dispensary AND s.checked_out_at IS NOT NULL
        AND s.checked_out_at > begins AND s.checked_in_at < ends
    ORDER BY s.ended_at DESC, s.id DESC
$$;
