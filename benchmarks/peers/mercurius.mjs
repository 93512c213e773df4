// Mercurius on Fastify, with graphql-jit from the first request of an operation on.
import Fastify from "fastify";
import mercurius from "mercurius";
import { loaders, resolvers, typeDefs } from "./node_schema.mjs";

const { StayCheckInResult, ...others } = resolvers;
const app = Fastify({ logger: false });
app.register(mercurius, {
  schema: typeDefs,
  resolvers: { ...others, StayCheckInResult: { resolveType: StayCheckInResult.resolveType } },
  jit: 1,
  graphiql: false,
  context: () => ({ load: loaders() }),
});
await app.listen({ port: Number(process.env.PORT), host: "127.0.0.1" });
console.log("ready");
