// graphql-http's audit of GraphQL over HTTP: every MUST passes, what SHOULD not is named.
import { auditServer } from 'graphql-http';

const [url, token] = process.argv.slice(2);
const fetchFn = (address, init = {}) =>
  fetch(address, { ...init, headers: { ...init.headers, authorization: `Bearer ${token}` } });
const counts = { ok: 0, notice: 0, warn: 0, error: 0 };
for (const result of await auditServer({ url, fetchFn })) {
  counts[result.status] += 1;
  if (result.status !== 'ok') {
    console.log(`${result.status}: ${result.id} ${result.name}: ${result.reason}`);
  }
}
console.log(JSON.stringify(counts));
process.exit(counts.error ? 1 : 0);
