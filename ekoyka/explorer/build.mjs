// Bundles GraphiQL, its Monaco editor and the editor's workers into ekoyka/static/explorer/<version>/.
//
// <version> is a digest of everything the output depends on, so that browsers may keep the files for ever.
// explorer.js is written last: while it is absent the server says that the explorer is not built.
import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { build } from "esbuild";

const here = import.meta.dirname;
const sources = ["build.mjs", "explorer.jsx", "nonce.js", "session.js", "explorer.css", "package-lock.json"];
const digest = createHash("sha256");
for (const source of sources) digest.update(readFileSync(join(here, source)));
const root = join(here, "..", "static", "explorer");
const outdir = join(root, digest.digest("hex").slice(0, 12));

const common = {
  absWorkingDir: here,
  bundle: true,
  minify: true,
  outdir,
  metafile: true,
  legalComments: "none", // licences.txt holds the licences whole
  target: ["chrome109", "firefox115", "safari16"],
  define: { "process.env.NODE_ENV": '"production"' },
  // Monaco's modules import their styles one by one; explorer.css already has them all.
  loader: { ".css": "empty", ".ttf": "empty" },
  logLevel: "warning",
};

rmSync(root, { recursive: true, force: true });
mkdirSync(outdir, { recursive: true });
const results = [
  await build({ ...common, entryPoints: ["explorer.css"], loader: { ".css": "css" } }),
  await build({
    ...common,
    format: "iife",
    entryPoints: {
      "editor.worker": "monaco-editor/esm/vs/editor/editor.worker.js",
      "json.worker": "monaco-editor/esm/vs/language/json/json.worker.js",
      "graphql.worker": "monaco-graphql/esm/graphql.worker.js",
    },
  }),
  // One file: a policy that trusts a nonce alone leaves it to the browser whether import() is trusted too.
  await build({
    ...common,
    format: "esm",
    jsx: "automatic",
    entryPoints: ["explorer.jsx"],
  }),
];

const packages = new Set();
for (const { metafile } of results) {
  for (const input of Object.keys(metafile.inputs)) {
    const inside = input.match(/^(.*node_modules\/(?:@[^/]+\/)?[^/]+)\//);
    if (inside) packages.add(inside[1]);
  }
}
const licences = [...packages].sort().map((folder) => {
  const { name, version, license } = JSON.parse(readFileSync(join(here, folder, "package.json")));
  const files = readdirSync(join(here, folder)).filter((file) => /^(licen[cs]e|notice|thirdparty)/i.test(file));
  const texts = files.map((file) => readFileSync(join(here, folder, file), "utf8").trim());
  return [`${name} ${version} (${license})`, ...texts].join("\n\n");
});
writeFileSync(join(outdir, "licences.txt"), licences.join(`\n\n${"-".repeat(80)}\n\n`) + "\n");
