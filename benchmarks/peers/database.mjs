// What the peers on node share: the pool, and rows in batches.
import pg from "pg";

pg.types.setTypeParser(1082, (text) => text); // a date is a day, not an instant in some zone

export const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 10 });

// pg keeps prepared statements by name.
export async function rows(name, text, values) {
  return (await pool.query({ name, text, values })).rows;
}
