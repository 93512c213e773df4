"""A database with rows in every table: the demonstration's network, and what a demonstration has none of."""

from __future__ import annotations

from datetime import UTC, datetime

import asyncpg

from ekoyka import demo
from ekoyka.database import ACTOR, NETWORK, WARD_ROLE, Database
from ekoyka.identity.credentials import PasswordHasher
from ekoyka.migrate import METADATA

NOW = datetime(2026, 3, 9, tzinfo=UTC)
_MORE = """
INSERT INTO session (account_id, expires_at, address, client)
    SELECT id, now() + interval '1 day', '127.0.0.1', 'a browser' FROM account;
INSERT INTO refresh_token (session_id, hash) SELECT id, sha256(id::text::bytea) FROM session;
INSERT INTO password_reset (account_id, hash, issued_by_id, expires_at)
    SELECT id, sha256(id::text::bytea), id, now() + interval '1 hour' FROM account;
INSERT INTO idempotency_key (account_id, mutation, key, input_hash, result_id)
    SELECT min(account_id), 'stayCheckIn', 'ключ', sha256('input'), (SELECT min(id) FROM stay) FROM session;
INSERT INTO trusted_document (id, client, document) VALUES (repeat('0', 64), 'web-1.0.0', '{ me { id } }');
INSERT INTO rate (key, free, window_s, slower, attempts, at, refused)
    SELECT 'key', 1, 60, false, 1, now(), false;
INSERT INTO server_process (id, until) VALUES ('5f0f4c7e-7d3b-4a5e-9a60-0d4b3c0c7f11', now());
INSERT INTO tally (key, process_id, number) SELECT 'key', id, 1 FROM server_process;
INSERT INTO external_identity (account_id, issuer, subject) SELECT id, 'https://id.example.org', id FROM account;
INSERT INTO access_set (digest, patients)
    SELECT sha256(string_agg(id::text, ',' ORDER BY id)::bytea), array_agg(id ORDER BY id) FROM patient;
INSERT INTO access_seal (number, entries, size, digest)
    SELECT 1, range_agg(int8range(id, id, '[]')), count(*), sha256('') FROM access_entry;
INSERT INTO stay_revision (stay_id, revised_by_id, reason, former)
    SELECT min(stay.id), min(account.id), 'ошибка записи', '{"outcome": "DIED"}' FROM stay, account;
INSERT INTO certificate_duplicate (certificate_id, issued_by_id, reason)
    SELECT min(certificate.id), min(account.id), 'утеряна' FROM certificate, account;
INSERT INTO slot_hold (slot_id, dispensary_id, account_id, until)
    SELECT slot.id, slot.dispensary_id, account.id, now() FROM slot, account ORDER BY slot.id, account.id LIMIT 1;
INSERT INTO slot_offer (entry_id, slot_id, dispensary_id, patient_id, until)
    SELECT w.id, slot.id, w.dispensary_id, w.patient_id, now()
    FROM waiting_entry w JOIN slot ON slot.dispensary_id = w.dispensary_id AND NOT slot.taken
    ORDER BY w.id, slot.id LIMIT 1;
"""


async def fill(database: Database) -> None:
    """Every table of the newest schema holds rows; of one that is new here, say so above."""
    hasher = PasswordHasher(4)
    await demo.fill(database, hasher=hasher, say=lambda _: None, now=NOW)
    hasher.close()
    connection = await asyncpg.connect(database.url, server_settings={"role": WARD_ROLE, ACTOR: NETWORK})
    try:
        await connection.execute(_MORE)
        empty = [
            table
            for table in METADATA.tables
            if not await connection.fetchval(f"SELECT count(*) FROM {table}")
        ]
    finally:
        await connection.close()
    assert empty == []
