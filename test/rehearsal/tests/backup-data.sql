-- What a real system has and a small sample has not. Run as superuser in kgc; may be run again.
SET client_min_messages = warning;
DROP SCHEMA IF EXISTS billing, "Odd Schema" CASCADE;
CREATE EXTENSION IF NOT EXISTS vector;
CREATE EXTENSION IF NOT EXISTS pg_trgm;
CREATE EXTENSION IF NOT EXISTS pgcrypto;
GRANT CREATE ON DATABASE kgc TO kgc;
ALTER DATABASE kgc SET work_mem = '8MB';
SELECT lo_unlink(oid) FROM pg_largeobject_metadata;
SET ROLE kgc;
CREATE SCHEMA billing;
CREATE SCHEMA "Odd Schema";
SET search_path = billing, public;

CREATE TYPE state AS ENUM ('draft', 'sent', 'paid');
CREATE DOMAIN tax_number AS text CHECK (VALUE ~ '^\d{8}-\d-\d{2}$');
CREATE SEQUENCE invoice_number START 20260001;
CREATE TABLE customer (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text COLLATE "hu-x-icu" NOT NULL, tax tax_number);
CREATE TABLE invoice (
  id bigint PRIMARY KEY DEFAULT nextval('invoice_number'),
  customer bigint NOT NULL REFERENCES customer,
  net numeric(12, 2) NOT NULL,
  gross numeric(12, 2) GENERATED ALWAYS AS (net * 1.27) STORED,
  state state NOT NULL DEFAULT 'draft',
  lines jsonb NOT NULL,
  issued timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON invoice USING gin (lines jsonb_path_ops);
CREATE TABLE attachment (id int PRIMARY KEY, body bytea NOT NULL);
ALTER TABLE attachment ALTER body SET STORAGE EXTERNAL;
CREATE TABLE embedding (id int PRIMARY KEY, at vector(8));
CREATE INDEX ON embedding USING hnsw (at vector_l2_ops);
CREATE TABLE "Odd Schema"."Kis ""Tábla"" $x'y" ("Ö select" int, "a b" text);
CREATE UNLOGGED TABLE scratch (id int);
CREATE TABLE event (at date NOT NULL, what text) PARTITION BY RANGE (at);
CREATE TABLE event_2025 PARTITION OF event FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE event_2026 PARTITION OF event FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE TABLE contact (id int PRIMARY KEY, name text);
CREATE TABLE supplier (tax tax_number) INHERITS (contact);
CREATE TABLE delivery (id int PRIMARY KEY);
CREATE TABLE delivered (id int PRIMARY KEY REFERENCES delivery);
CREATE MATERIALIZED VIEW open_total AS SELECT sum(net) AS net FROM invoice WHERE state <> 'paid';
CREATE TABLE private (owner name, note text);
ALTER TABLE private ENABLE ROW LEVEL SECURITY;
ALTER TABLE private FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON private USING (owner = 'nobody');
CREATE TABLE scan (id int, body oid);
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.issued = now(); RETURN NEW; END';
CREATE TRIGGER touched BEFORE UPDATE ON invoice FOR EACH ROW EXECUTE FUNCTION touch();

INSERT INTO customer (name, tax) SELECT 'Őri Kft. ' || n, '12345678-2-4' || n % 10 FROM generate_series(1, 2000) n;
INSERT INTO invoice (customer, net, lines)
  SELECT 1 + n % 2000, n, jsonb_build_object('items', jsonb_build_array(n, 'árvíztűrő', n::text)) FROM generate_series(1, 20000) n;
-- Does not compress: three parts and more of an upload.
INSERT INTO attachment SELECT n, (SELECT string_agg(gen_random_bytes(1024), '') FROM generate_series(1, 512) WHERE n > 0) FROM generate_series(1, 100) n;
INSERT INTO embedding SELECT n, array(SELECT random() FROM generate_series(1, 8) WHERE n > 0)::vector FROM generate_series(1, 200) n;
INSERT INTO "Odd Schema"."Kis ""Tábla"" $x'y" VALUES (1, E'tab\tquote''\\'), (2, NULL);
INSERT INTO scratch SELECT generate_series(1, 10);
INSERT INTO event SELECT '2025-06-01'::date + n, 'x' FROM generate_series(1, 400) n;
INSERT INTO contact SELECT n, 'x' FROM generate_series(1, 30) n;
INSERT INTO supplier SELECT n, 'x' FROM generate_series(1, 12) n;
RESET ROLE;
INSERT INTO billing.private VALUES ('alice', 'seen by nobody but a backup');
SET ROLE kgc;
INSERT INTO scan SELECT n, lo_from_bytea(0, gen_random_bytes(1000)) FROM generate_series(1, 5) n;
REFRESH MATERIALIZED VIEW open_total;
SELECT setval('invoice_number', 20999999);
