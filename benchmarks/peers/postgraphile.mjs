// PostGraphile: the schema is made from the tables and the functions in postgraphile.sql.
import "./node_22.mjs";
import { createServer } from "node:http";
import { postgraphile } from "postgraphile";
import { makePgService } from "postgraphile/adaptors/pg";
import { grafserv } from "postgraphile/grafserv/node";
import { PostGraphileAmberPreset } from "postgraphile/presets/amber";

const instance = postgraphile({
  extends: [PostGraphileAmberPreset],
  // It offers no relation or condition over columns of which no index says that it begins with them; ours are partial.
  disablePlugins: ["PgIndexBehaviorsPlugin"],
  pgServices: [
    makePgService({ connectionString: process.env.DATABASE_URL, poolConfig: { max: 10 }, schemas: ["public"] }),
  ],
  grafserv: { graphiql: false, watch: false, graphqlPath: "/graphql", maxRequestLength: 100_000 },
  grafast: { explain: false },
});
const server = createServer();
await instance.createServ(grafserv).addTo(server);
server.listen(Number(process.env.PORT), "127.0.0.1", () => console.log("ready"));
