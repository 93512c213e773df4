// graphql-ws over ws, with an in-memory emitter in place of a database: the usual way to serve subscriptions on node.
// POST /emit is the change; each subscriber gets the present state first and then one event for each change.
import { EventEmitter, on } from "node:events";
import { createServer } from "node:http";
import {
  GraphQLBoolean,
  GraphQLID,
  GraphQLInt,
  GraphQLList,
  GraphQLNonNull,
  GraphQLObjectType,
  GraphQLSchema,
  GraphQLString,
} from "graphql";
import { useServer } from "graphql-ws/use/ws";
import { WebSocketServer } from "ws";

const emitter = new EventEmitter();
emitter.setMaxListeners(0);
const text = new GraphQLNonNull(GraphQLString);
const number = new GraphQLNonNull(GraphQLInt);
const type = (name, fields) =>
  new GraphQLObjectType({
    name,
    fields: Object.fromEntries(Object.entries(fields).map(([key, kind]) => [key, { type: kind }])),
  });
const Bed = type("Bed", { id: new GraphQLNonNull(GraphQLID), label: text });
const BedChanged = type("BedChanged", { change: text, status: text, bed: Bed });
const BedCounts = type("BedCounts", { total: number, free: number, available: number, occupied: number });
const BedEvent = type("BedEvent", {
  kind: text,
  cursor: text,
  changes: new GraphQLNonNull(new GraphQLList(new GraphQLNonNull(BedChanged))),
  counts: BedCounts,
});

let cursor = 0;
const event = (kind) => ({
  kind,
  cursor: Buffer.from(`beds:1 ${cursor}`).toString("base64"),
  changes: kind === "CHANGE" ? [{ change: "CORRECTED", status: "FREE", bed: { id: "QmVkOjE=", label: "1" } }] : [],
  counts: { total: 160, free: 31, available: 20, occupied: 129 },
});

async function* bedAvailability() {
  const changes = on(emitter, "change");
  yield { bedAvailability: event("SNAPSHOT") };
  for await (const [change] of changes) yield { bedAvailability: change };
}

const schema = new GraphQLSchema({
  query: new GraphQLObjectType({ name: "Query", fields: { alive: { type: GraphQLBoolean } } }),
  subscription: new GraphQLObjectType({
    name: "Subscription",
    fields: {
      bedAvailability: {
        type: new GraphQLNonNull(BedEvent),
        args: { dispensaryId: { type: new GraphQLNonNull(GraphQLID) } },
        subscribe: bedAvailability,
      },
    },
  }),
});

const server = createServer((request, response) => {
  if (request.url === "/emit") {
    cursor += 1;
    emitter.emit("change", event("CHANGE"));
  }
  response.end("{}");
});
useServer({ schema }, new WebSocketServer({ server, path: "/graphql", perMessageDeflate: false }));
server.listen(Number(process.env.PORT), "127.0.0.1", () => console.log("ready"));
