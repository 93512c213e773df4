// Apollo Server, standalone.
import { ApolloServer } from "@apollo/server";
import { startStandaloneServer } from "@apollo/server/standalone";
import { loaders, resolvers, typeDefs } from "./node_schema.mjs";

const { StayCheckInResult, ...others } = resolvers;
const server = new ApolloServer({
  typeDefs,
  resolvers: { ...others, StayCheckInResult: { __resolveType: StayCheckInResult.__resolveType } },
  introspection: false,
  csrfPrevention: false,
});
await startStandaloneServer(server, {
  listen: { port: Number(process.env.PORT), host: "127.0.0.1", path: "/graphql" },
  context: async () => ({ load: loaders() }),
});
console.log("ready");
