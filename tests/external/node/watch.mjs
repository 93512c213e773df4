// The graphql-ws client: a feed with a change in it, a query over the socket, a renewal, and tokens that are not good.
import { createClient } from 'graphql-ws';
import WebSocket from 'ws';

const [url, token] = process.argv.slice(2);
const ask = async (query, variables) => {
  const answer = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json', authorization: `Bearer ${token}` },
    body: JSON.stringify({ query, variables }),
  });
  return (await answer.json()).data;
};
const client = (credentials, on) =>
  createClient({
    on,
    url: url.replace('http', 'ws'),
    webSocketImpl: WebSocket,
    retryAttempts: 0,
    connectionParams: { Authorization: `Bearer ${credentials}` },
  });
const check = (holds, what) => {
  if (!holds) throw new Error(`not so: ${what}`);
  console.log(`ok: ${what}`);
};

const { beds } = await ask(
  '{ beds(first: 1, where: {status: [FREE]}) { edges { node { id dispensary { id } } } } }',
);
const bed = beds.edges[0].node;
const feed = client(token);
const events = feed.iterate({
  query: `subscription ($id: ID!) { bedAvailability(dispensaryId: $id) {
    kind cursor changes { change status bed { id } } counts { total free } } }`,
  variables: { id: bed.dispensary.id },
});
const first = (await events.next()).value.data.bedAvailability;
check(first.kind === 'SNAPSHOT', 'a feed begins with the present state');
for (const state of ['CLEANING', 'IN_SERVICE']) {
  const made = await ask(
    `mutation ($i: BedSetServiceStateInput!) { bedSetServiceState(input: $i) { __typename } }`,
    { i: { id: bed.id, state } },
  );
  check(made.bedSetServiceState.__typename === 'Bed', `the bed is ${state}`);
  const event = (await events.next()).value.data.bedAvailability;
  check(event.changes.every((change) => change.bed.id === bed.id), 'the feed tells of it');
}
await events.return();
const only = (await feed.iterate({ query: '{ me { name } }' }).next()).value;
check(typeof only.data.me.name === 'string', 'a query over the socket has one answer');
const wrong = await feed
  .iterate({ query: '{ nonsense }' })
  .next()
  .catch((errors) => errors);
check(wrong.length === 1 && wrong[0].extensions.code, 'a wrong document gives an error by name');
const after = (await feed.iterate({ query: '{ me { name } }' }).next()).value;
check(typeof after.data.me.name === 'string', 'the socket goes on after it');
feed.dispose();

let socket, renewed;
const expiry = new Promise((resolve) => (renewed = resolve));
const renewing = client(token, {
  connected: (opened) => (socket = opened),
  pong: (received, payload) => received && renewed(payload),
});
const watched = renewing.iterate({
  query: 'subscription ($id: ID!) { bedChanged(bedId: $id) { kind changes { status } } }',
  variables: { id: bed.id },
});
await watched.next();
const renew = (credentials) =>
  socket.send(JSON.stringify({ type: 'ping', payload: { authorization: `Bearer ${credentials}` } }));
renew(token);
check(new Date((await expiry).expiresAt) > new Date(), 'a ping with a token is answered with its expiry');
await ask(`mutation ($i: BedSetServiceStateInput!) { bedSetServiceState(input: $i) { __typename } }`, {
  i: { id: bed.id, state: 'CLEANING' },
});
const seen = (await watched.next()).value.data.bedChanged;
check(seen.changes[0].status === 'CLEANING', 'and the feed goes on');
await ask(`mutation ($i: BedSetServiceStateInput!) { bedSetServiceState(input: $i) { __typename } }`, {
  i: { id: bed.id, state: 'IN_SERVICE' },
});
const other = await ask(
  `mutation { signIn(input: {email: "doctor@example.org", password: "demo-doctor-2026"}) {
    ... on Tokens { accessToken } } }`,
);
await watched.next();
renew(other.signIn.accessToken);
const closed = await watched.next().catch((error) => error);
check(closed.code === 4403, "another account's token closes the socket with 4403");

const refused = await new Promise((resolve) => {
  client('nonsense').subscribe(
    { query: '{ me { name } }' },
    { next: resolve, complete: resolve, error: resolve },
  );
});
check(refused.code === 4401, 'a token that is not good closes the socket with 4401');
process.exit(0);
