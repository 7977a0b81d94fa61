/** What real databases have and simple ones lack, so that a restore that loses any of it is seen. */
export const DATA = `
SET ROLE kgc;
CREATE SCHEMA "Számlák 2026";
CREATE TABLE "Számlák 2026"."Tétel; drop" (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "név" text NOT NULL, ár numeric NOT NULL,
  bruttó numeric GENERATED ALWAYS AS (ár * 1.27) STORED, adat jsonb, kép bytea);
INSERT INTO "Számlák 2026"."Tétel; drop" ("név", ár, adat, kép)
  SELECT 'Őrségi dió ' || i, i, jsonb_build_object('i', i, 'x', repeat('y', i % 50)), decode(md5(i::text), 'hex')
    FROM generate_series(1, 20000) AS i;
CREATE INDEX ON "Számlák 2026"."Tétel; drop" USING gin (adat);
CREATE UNLOGGED TABLE gyors (n int);
INSERT INTO gyors SELECT generate_series(1, 500);
CREATE TABLE parts (at date, n int) PARTITION BY RANGE (at);
CREATE TABLE parts_2026 PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
INSERT INTO parts SELECT '2026-01-01'::date + n % 365, n FROM generate_series(1, 1000) AS n;
CREATE TABLE "Számlák 2026".cikk (n int, név text);
CREATE TABLE "Számlák 2026".cikk_régi (év int) INHERITS ("Számlák 2026".cikk);
INSERT INTO "Számlák 2026".cikk SELECT n, 'új' FROM generate_series(1, 30) AS n;
INSERT INTO "Számlák 2026".cikk_régi SELECT n, 'régi', 1999 FROM generate_series(1, 12) AS n;
CREATE SEQUENCE receipt START 4711;
SELECT nextval('receipt');
CREATE MATERIALIZED VIEW sums AS SELECT count(*) AS n FROM "Számlák 2026"."Tétel; drop";
CREATE EXTENSION pg_trgm;
SELECT lo_from_bytea(4242, decode(repeat('c0ffee', 20000), 'hex'));
ALTER TABLE gyors ENABLE ROW LEVEL SECURITY;
RESET ROLE;
ALTER DATABASE kgc SET work_mem = '7MB';
ALTER DATABASE kgc SET search_path = "$user", public;
ALTER ROLE kgc_a IN DATABASE kgc SET statement_timeout = '77s';
ALTER DATABASE kgc CONNECTION LIMIT 150;
CREATE ROLE auditor;
GRANT TEMPORARY ON DATABASE kgc TO auditor WITH GRANT OPTION;
GRANT SELECT ON ALL TABLES IN SCHEMA "Számlák 2026" TO auditor;
CREATE EXTENSION IF NOT EXISTS vector;
CREATE TABLE "Számlák 2026".hasonló (id int PRIMARY KEY, irány vector(3));
INSERT INTO "Számlák 2026".hasonló SELECT i, ARRAY[i % 7, i % 11, i % 13]::vector FROM generate_series(1, 500) AS i;
CREATE INDEX ON "Számlák 2026".hasonló USING hnsw (irány vector_l2_ops);`

/** One line per table, sequence and large object of a database, with a hash of all that is in it. */
export const CONTENT = `
SELECT format('%I.%I', nspname, relname) || ' ' || (xpath('//h/text()', query_to_xml(format(
    'SELECT md5(coalesce(string_agg(x::text, chr(10) ORDER BY x::text), '''')) AS h FROM ONLY %I.%I AS x', nspname, relname), false, true, '')))[1]
  FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
 WHERE relkind IN ('r', 'm') AND nspname !~ '^(pg_|information_schema)' AND relname <> 'work' ORDER BY 1;
SELECT sequencename, last_value FROM pg_sequences ORDER BY 1;
SELECT loid, md5(string_agg(data, '' ORDER BY pageno)) FROM pg_largeobject GROUP BY 1;
SELECT conname, convalidated FROM pg_constraint WHERE conrelid > 16384 ORDER BY 1;
SELECT indexrelid::regclass::text, indisvalid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
 WHERE indexrelid > 16384 AND relnamespace <> 'pg_toast'::regnamespace ORDER BY 1;
SELECT relname, relacl, relrowsecurity, relpersistence FROM pg_class WHERE oid > 16384 AND relkind IN ('r', 'S', 'v', 'm') ORDER BY 1;
SELECT extname, extversion FROM pg_extension ORDER BY 1;`

/** What belongs to a database and is not in a dump of it. */
export const properties = (database: string) => `
SELECT pg_get_userbyid(datdba), (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(datacl) AS a), datconnlimit, datallowconn,
       pg_encoding_to_char(encoding), datcollate, datctype, datlocprovider, daticulocale,
       (SELECT json_agg(json_build_array(setrole::regrole::text, setconfig) ORDER BY setrole) FROM pg_db_role_setting WHERE setdatabase = pg_database.oid)
  FROM pg_database WHERE datname = '${database}'`

/** 1.6 GB: narrow rows, documents with their index, and bytes that do not compress. */
export const LARGE = `
SET ROLE kgc;
SET synchronous_commit = off;
CREATE TABLE large_rows AS SELECT i AS id, i % 100 AS branch, 0 AS balance, repeat(' ', 84)::char(84) AS filler FROM generate_series(1, 6000000) AS i;
ALTER TABLE large_rows ADD PRIMARY KEY (id);
CREATE TABLE large_documents AS SELECT i AS id, jsonb_build_object('customer', i % 5000, 'text', repeat(md5(i::text), 8), 'tags', jsonb_build_array(md5((i % 97)::text), md5((i % 1009)::text))) AS document, repeat(md5((i * 7)::text), 12) AS note FROM generate_series(1, 380000) AS i;
CREATE INDEX ON large_documents USING gin (document);
CREATE TABLE large_bytes AS SELECT i AS id, (SELECT decode(string_agg(md5(random()::text || i || n), ''), 'hex') FROM generate_series(1, 512) AS n) AS bytes FROM generate_series(1, 40000) AS i;`
