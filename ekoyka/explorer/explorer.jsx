// GraphiQL for the endpoint that the page names in its root element.
import "./nonce.js";
import { createGraphiQLFetcher } from "@graphiql/toolkit";
import { GraphiQL } from "graphiql";
import { createRoot } from "react-dom/client";
import { carried } from "./session.js";

const workers = { json: "json.worker.js", graphql: "graphql.worker.js" };
globalThis.MonacoEnvironment = {
  getWorker: (_id, label) => new Worker(new URL(workers[label] ?? "editor.worker.js", import.meta.url)),
};

const root = document.getElementById("root");
const endpoint = new URL(root.dataset.endpoint, location.href);
const feed = new URL(endpoint);
feed.protocol = endpoint.protocol === "https:" ? "wss:" : "ws:";

// Each subscription opens its own socket, whose connection parameters are the headers typed at that moment.
const fetcher = createGraphiQLFetcher({
  url: endpoint.href,
  subscriptionUrl: feed.href,
  enableIncrementalDelivery: false,
});

// What was typed names patients and holds passwords: it lives as long as the browser's tab, not on the disk
// of a computer that a ward shares.
createRoot(root).render(
  <GraphiQL
    fetcher={carried(fetcher)}
    storage={sessionStorage}
    defaultQuery={root.dataset.document}
    defaultEditorToolsVisibility="headers"
    inputValueDeprecation
  >
    <GraphiQL.Logo>EKoyka</GraphiQL.Logo>
  </GraphiQL>,
);
