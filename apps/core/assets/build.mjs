// Copies what the pages load from node_modules to apps/core/static/vendor/ (git-ignored), with the licences beside it.
import { cp, mkdir, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const out = join(here, "..", "static", "vendor");
const files = {
  "@fontsource-variable/inter/files/inter-latin-wght-normal.woff2": "fonts/inter-latin-wght-normal.woff2",
  "@fontsource-variable/inter/LICENSE": "fonts/inter.LICENSE",
  "@fontsource-variable/jetbrains-mono/files/jetbrains-mono-latin-wght-normal.woff2": "fonts/jetbrains-mono-latin-wght-normal.woff2",
  "@fontsource-variable/jetbrains-mono/LICENSE": "fonts/jetbrains-mono.LICENSE",
  "uplot/dist/uPlot.esm.js": "uplot/uPlot.esm.js",
  "uplot/dist/uPlot.min.css": "uplot/uPlot.min.css",
  "uplot/LICENSE": "uplot/LICENSE",
};

await rm(out, { recursive: true, force: true });
for (const [from, to] of Object.entries(files)) {
  await mkdir(dirname(join(out, to)), { recursive: true });
  await cp(join(here, "node_modules", from), join(out, to));
}
